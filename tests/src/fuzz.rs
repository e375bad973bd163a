//! The targets of the fuzzer, without one: seeds, damaged seeds, and what made a target fail once.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{daemon::root, random::Random, targets::Run};

/// What lies in a folder of a target, in the order of its names; nothing if there is no such folder.
///
/// # Errors
/// If it cannot be read.
pub fn inputs(folder: &str, target: &str) -> Result<Vec<Vec<u8>>> {
    let dir = root().join("fuzz").join(folder).join(target);
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&dir)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).with_context(|| path.display().to_string())).collect()
}

/// Gives a target its seeds, each of them cut short everywhere, so many damaged ones, and long ones.
///
/// # Errors
/// If it has no seeds.
pub fn run(name: &str, target: Run, damaged: usize) -> Result<()> {
    let seeds = inputs("seeds", name)?;
    ensure!(!seeds.is_empty(), "fuzz/seeds/{name} is empty");
    for seed in &seeds {
        (0..=seed.len()).for_each(|end| target(&seed[..end]));
    }
    let mut random = Random::new(0x5eed);
    for _ in 0..damaged {
        let mut bytes = random.pick(&seeds).clone();
        for _ in 0..=random.below(4) {
            damage(&mut bytes, &seeds, &mut random);
        }
        target(&bytes);
    }
    for _ in 0..damaged / 400 {
        let seed = random.pick(&seeds);
        target(&long(seed, &mut random));
    }
    Ok(())
}

/// A seed that goes on and on at one place, so that what costs more with each step shows.
fn long(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let at = random.below(seed.len() as u32) as usize;
    let end = seed.len().min(at + 1 + random.below(4) as usize);
    let again = seed[at..end].repeat(LONG / (end - at));
    [&seed[..end], &*again, &seed[end..]].concat()
}

/// One change such as a fuzzer would make.
fn damage(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() as u32 + 1) as usize;
    match random.below(6) {
        0 => bytes.insert(at, *random.pick(TELLING)),
        1 => bytes.truncate(at),
        2 => {
            let end = bytes.len().min(at + 1 + random.below(8) as usize);
            bytes.drain(at..end);
        }
        3 => {
            let other = random.pick(seeds);
            let from = random.below(other.len() as u32 + 1) as usize;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        4 if at < bytes.len() => bytes[at] = *random.pick(TELLING),
        _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        _ => {}
    }
}

/// As much as a head may have, and then some.
const LONG: usize = 40 * 1024;

/// Bytes that mean something to one parser or another.
const TELLING: &[u8] = b"\0\x01\x7f\x80\xff\t\r\n \"%&'()*+,-./0129:;<=>?@AZ[\\]_az{}~";
