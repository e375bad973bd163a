//! What load generators print, read: how many requests were answered, and that nothing went wrong.

use anyhow::{Context, Result, ensure};

/// Requests that `wrk` counts, if every answer was a good one.
pub(super) fn wrk_requests(said: &str) -> Result<f64> {
    ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
    let line = said.lines().find(|line| line.contains(" requests in ")).context("no count")?;
    let count: f64 = first_number(line).with_context(|| said.to_owned())?;
    ensure!(count > 0.0, "nothing was answered: {said}");
    Ok(count)
}

/// Requests that `h2load` counts, if every answer was a good one.
pub(super) fn h2load_requests(said: &str) -> Result<f64> {
    let line = |start: &str| said.lines().find_map(|line| line.strip_prefix(start));
    let requests = line("requests: ").context("no count")?;
    let count = |name: &str| {
        let part = requests.split(", ").find(|part| part.ends_with(name));
        part.and_then(first_number).with_context(|| said.to_owned())
    };
    let succeeded = count(" succeeded")?;
    let statuses = line("status codes: ").context("no statuses")?;
    let good = statuses.split(", ").find(|part| part.ends_with(" 2xx")).and_then(first_number);
    let wrong = [count(" failed")?, count(" errored")?, count(" timeout")?];
    // A head may have come of an answer that was not complete when the time was over.
    let good = good.is_some_and(|good| good >= succeeded);
    ensure!(wrong == [0.0; 3] && good && succeeded > 0.0, "{said}");
    Ok(succeeded)
}

/// The number that a text begins with.
fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 1s test @ https://127.0.0.1:9443/\n  1 threads and 64 connections\n\
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     2.55ms    1.15ms  16.22ms   79.28%\n\
          24892 requests in 1.00s, 29.65MB read\nRequests/sec:  24857.19\n";

    #[test]
    fn wrk_is_believed_if_all_went_well() {
        assert_eq!(wrk_requests(WRK).unwrap(), 24892.0);
        for wrong in
            ["  Non-2xx or 3xx responses: 3\n", "  Socket errors: connect 0, read 1, write 0\n"]
        {
            assert!(wrk_requests(&format!("{WRK}{wrong}")).is_err());
        }
        assert!(wrk_requests("").is_err());
        assert!(wrk_requests(&WRK.replace("24892 requests", "0 requests")).is_err());
    }

    const H2LOAD: &str = "finished in 1.00s, 30210.00 req/s, 31.00MB/s\n\
        requests: 30466 total, 30466 started, 30210 done, 30210 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 30210 2xx, 0 3xx, 0 4xx, 0 5xx\ntraffic: 31.00MB total\n";

    #[test]
    fn h2load_is_believed_if_all_went_well() {
        assert_eq!(h2load_requests(H2LOAD).unwrap(), 30210.0);
        for (good, bad) in [
            ("0 failed", "1 failed"),
            ("0 errored", "2 errored"),
            ("0 timeout", "1 timeout"),
            ("30210 2xx", "30209 2xx"),
            ("30210 succeeded", "0 succeeded"),
            ("requests: ", "nothing: "),
        ] {
            assert!(h2load_requests(&H2LOAD.replace(good, bad)).is_err(), "{bad}");
        }
    }
}
