//! The object without the calls of helpers that a kernel does not have: its verifier refuses a program for
//! such a call, also where it is never come to.

/// A copy of an object, as aligned as the loader asks for.
pub(super) struct Uncalled {
    room: Vec<u8>,
    start: usize,
}

impl Uncalled {
    /// The object, in which these helpers are not called: each call answers that nothing of the kind is
    /// supported, as the kernel would where it has the helper and not what is behind it.
    pub(super) fn new(object: &[u8], helpers: &[u32]) -> Self {
        let mut room = vec![0; object.len() + ALIGNMENT];
        let start = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let copy = &mut room[start..start + object.len()];
        copy.copy_from_slice(object);
        for section in code(object) {
            let code = copy.get_mut(section).unwrap_or_default();
            for instruction in code.as_chunks_mut::<INSTRUCTION>().0 {
                if called(instruction).is_some_and(|helper| helpers.contains(&helper)) {
                    *instruction = NOT_SUPPORTED;
                }
            }
        }
        room.truncate(start + object.len());
        Self { room, start }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[self.start..]
    }
}

/// The helper that an instruction calls.
fn called(instruction: &[u8; INSTRUCTION]) -> Option<u32> {
    match instruction {
        // With a source register it calls another function of the object.
        [CALL, 0, 0, 0, helper @ ..] => Some(u32::from_le_bytes(*helper)),
        _ => None,
    }
}

/// Where the instructions of an ELF object lie. What is none, or is damaged, has none: the loader says so.
fn code(object: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let half = |at| Some(usize::from(u16::from_le_bytes(*object.get(at..)?.first_chunk()?)));
    let long = |at| usize::try_from(u64::from_le_bytes(*object.get(at..)?.first_chunk()?)).ok();
    let headers = (long(SECTIONS_AT), half(SECTION_BYTES_AT), half(SECTION_COUNT_AT));
    let (start, bytes, count) = match headers {
        (Some(start), Some(bytes), Some(count)) => (start, bytes, count),
        _ => (0, 0, 0),
    };
    (0..count).filter_map(move |number| {
        let header = number.checked_mul(bytes)?.checked_add(start)?;
        let is_code = long(header.checked_add(FLAGS_AT)?)? & EXECUTABLE != 0;
        let (from, length) = (long(header + OFFSET_AT)?, long(header + LENGTH_AT)?);
        is_code.then_some(from..from.checked_add(length)?)
    })
}

const ALIGNMENT: usize = 8;
const INSTRUCTION: usize = 8;
const CALL: u8 = 0x85;
/// `r0 = -EOPNOTSUPP`
const NOT_SUPPORTED: [u8; INSTRUCTION] = {
    let [a, b, c, d] = (-libc::EOPNOTSUPP).to_le_bytes();
    [0xb7, 0, 0, 0, a, b, c, d]
};
// Where things lie in an ELF object of 64 bits, and in the header of a section.
const SECTIONS_AT: usize = 0x28;
const SECTION_BYTES_AT: usize = 0x3a;
const SECTION_COUNT_AT: usize = 0x3c;
const FLAGS_AT: usize = 0x08;
const OFFSET_AT: usize = 0x18;
const LENGTH_AT: usize = 0x20;
/// `SHF_EXECINSTR`
const EXECUTABLE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{OBJECT, probe::OF_SYN_COOKIES};

    fn calls(object: &[u8], helper: u32) -> usize {
        let code = code(object).flat_map(|section| object[section].as_chunks::<INSTRUCTION>().0);
        code.filter(|instruction| called(instruction) == Some(helper)).count()
    }

    #[test]
    fn no_call_of_a_missing_helper_is_left_and_all_else_is_as_it_was() {
        let less = Uncalled::new(OBJECT, &OF_SYN_COOKIES);
        assert_eq!(less.bytes().as_ptr().align_offset(ALIGNMENT), 0);
        let mut gone = 0;
        for helper in OF_SYN_COOKIES {
            assert!(calls(OBJECT, helper) > 0, "{helper} is not called at all");
            assert_eq!(calls(less.bytes(), helper), 0, "{helper}");
            gone += calls(OBJECT, helper);
        }
        let pairs = OBJECT.as_chunks::<8>().0.iter().zip(less.bytes().as_chunks::<8>().0);
        let changed: Vec<_> = pairs.filter(|(before, after)| before != after).collect();
        assert_eq!(changed.len(), gone);
        assert!(changed.iter().all(|(_, after)| **after == NOT_SUPPORTED));
        assert_eq!(Uncalled::new(OBJECT, &[]).bytes(), OBJECT);
    }

    #[test]
    fn what_is_no_object_is_copied_as_it_is() {
        for length in [0, 7, 0x40, OBJECT.len() / 2] {
            let part = &OBJECT[..length];
            assert_eq!(Uncalled::new(part, &[]).bytes(), part);
            let _ = Uncalled::new(part, &OF_SYN_COOKIES);
        }
    }
}
