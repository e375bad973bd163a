//! The command line of `edged`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use edge_policy::limit::Rule;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    app::App,
    config::{self, Settings, settings::Level},
    ctl::print,
    handover::{self, Predecessor},
    kernel,
    listen::Inherited,
    plan, stderr,
};

/// An edge that protects itself: XDP packet filter and TLS front of an API in one daemon.
#[derive(Parser)]
#[command(name = "edged", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Load the packet filter, open the listeners and serve until SIGTERM
    Run {
        #[command(flatten)]
        config: Config,
        /// Take over from the daemon that runs, if one does: no connection is refused or broken off
        #[arg(long)]
        takeover: bool,
    },
    /// Check the configuration and everything it names, then exit
    Check(Config),
    /// Take the packet filter off its interfaces and forget its tables
    ///
    /// The filter outlives the daemon, whether it stops, crashes or is upgraded. This is how an
    /// interface is given back.
    Detach(Config),
}

#[derive(clap::Args)]
struct Config {
    /// The configuration file
    #[arg(long, default_value = "/etc/edged/edged.toml")]
    config: PathBuf,
}

/// Runs the program with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let asked = Arguments::parse().verb;
    let is_detach = matches!(asked, Verb::Detach(_));
    let (verb, Config { config }): (fn(&Path, &Settings) -> anyhow::Result<()>, _) = match asked {
        Verb::Run { config, takeover: false } => (run, config),
        Verb::Run { config, takeover: true } => (take_over, config),
        Verb::Check(arguments) => (check, arguments),
        Verb::Detach(arguments) => (detach, arguments),
    };
    // What takes the filter off must work, whatever else is broken.
    let read = if is_detach { config::outline } else { config::load };
    let settings = match read(&config) {
        Ok((settings, warnings)) => {
            if !warnings.0.is_empty() {
                eprintln!("{warnings}");
            }
            settings
        }
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match verb(&config, &settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edged: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Path, settings: &Settings) -> anyhow::Result<()> {
    log_to_stderr(settings.log.level);
    let given = Inherited::of_environment().context("a listener that was given")?;
    App::build(config.to_owned(), settings.clone(), given, false)?.run(None)
}

fn take_over(config: &Path, settings: &Settings) -> anyhow::Result<()> {
    // What cannot work does not trouble the daemon that runs.
    try_plan(settings)?;
    kernel::Features::found().fit(&plan::kernel_policy(settings))?;
    let Some((mut former, given)) = Predecessor::ask(&handover::socket(settings))? else {
        return run(config, settings);
    };
    log_to_stderr(settings.log.level);
    former.release(|why| end(&format!("the daemon that runs stays: {why}")))?;
    let app = App::build(config.to_owned(), settings.clone(), given, true);
    app.and_then(|app| app.run(Some(former))).or_else(|error| end(&format!("{error:#}")))
}

/// Ends the process, whatever it is doing and however slow the reader of its log: the daemon that runs waits for that.
fn end(why: &str) -> ! {
    tracing::error!("{why}");
    std::process::exit(1)
}

/// Makes of the settings what requests are judged by. Reads no quota: a damaged one is the daemon's to
/// set aside.
fn try_plan(settings: &Settings) -> anyhow::Result<()> {
    let rule = |spec| Ok(Rule::new(spec, None, [0; 16]));
    plan::plan(settings, None, &crate::issuers::Feeds::default(), rule)?;
    Ok(())
}

fn check(config: &Path, settings: &Settings) -> anyhow::Result<()> {
    try_plan(settings)?;
    let unreachable = config::reach(config, settings);
    if !unreachable.0.is_empty() {
        eprintln!("{unreachable}");
    }
    let (features, policy) = (kernel::Features::found(), plan::kernel_policy(settings));
    if let Some(lacking) = features.shortfall(&policy) {
        let outcome = if policy.run_with_less { "runs without" } else { "does not start" };
        eprintln!(
            "on this kernel, {}, the filter {outcome}: it lacks {lacking}",
            kernel::release()
        );
    }
    println!("{}: fine", config.display());
    Ok(())
}

fn detach(_: &Path, settings: &Settings) -> anyhow::Result<()> {
    let pin_dir = &settings.kernel.pin_dir;
    print!("{}", print::detached(&kernel::detach(pin_dir)?, pin_dir, false));
    Ok(())
}

fn log_to_stderr(level: Level) {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| stderr::Log)
        .finish()
        .with(targets(level))
        .init();
}

/// Who may say what: `h2` warns of every frame with a mistake that a client sends.
fn targets(level: LevelFilter) -> Targets {
    let of_frames = if level < LevelFilter::DEBUG { LevelFilter::ERROR } else { level };
    Targets::new().with_default(level).with_target("h2", of_frames)
}

const BAD_CONFIGURATION: u8 = 78;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 78 the configuration is wrong.";

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn what_h2_says_of_frames_is_for_who_looks_closer_and_all_others_warn() {
        for (level, of_h2, of_others) in [
            (LevelFilter::INFO, Level::ERROR, Level::INFO),
            (LevelFilter::DEBUG, Level::DEBUG, Level::DEBUG),
        ] {
            let targets = targets(level);
            for target in ["h2::proto", "edge_daemon::cli", "hyper"] {
                let most = if target.starts_with("h2") { of_h2 } else { of_others };
                let told = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
                let told = told.map(|level| targets.would_enable(target, &level));
                let expected = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
                assert_eq!(told, expected.map(|level| level <= most), "{target} at {level}");
            }
        }
    }
}
