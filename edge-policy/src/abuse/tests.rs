//! What the book must and must not do to a client.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

fn settings() -> Settings {
    Settings {
        scores: Scores::new([
            (Reason::CredentialInvalid, 4.0),
            (Reason::NoRoute, 1.0),
            (Reason::UpstreamTimeout, 100.0),
        ]),
        threshold: 20.0,
        half_life_ns: MINUTE,
        ban_first_ns: 10 * MINUTE,
        ban_factor: 4,
        ban_max_ns: 60 * MINUTE,
        forget_after_ns: 24 * 60 * MINUTE,
        clients_max: 1000,
    }
}

fn client(number: u32) -> Source {
    Source::v4(number.to_be_bytes())
}

/// Misbehaves at one moment until banned.
fn until_banned(book: &mut Book, source: Source, now_ns: u64) -> (u64, u32) {
    for _ in 0..100 {
        let outcome = book.record(source, Reason::CredentialInvalid, now_ns);
        if let Outcome::Ban { duration_ns, strikes } = outcome {
            return (duration_ns / MINUTE, strikes);
        }
    }
    panic!("never banned");
}

#[test]
fn misdeeds_add_up_to_a_ban() {
    let mut book = Book::new(settings());
    for score in [4.0, 8.0, 12.0, 16.0] {
        let outcome = book.record(client(1), Reason::CredentialInvalid, 0);
        assert_eq!(outcome, Outcome::Scored(score));
    }
    let ban = Outcome::Ban { duration_ns: 10 * MINUTE, strikes: 1 };
    assert_eq!(book.record(client(1), Reason::CredentialInvalid, 0), ban);
    assert_eq!(book.score(&client(1), 0), 0.0);
    assert_eq!(book.score(&client(2), 0), 0.0);
}

#[test]
fn a_score_halves_with_every_half_life() {
    let mut book = Book::new(settings());
    book.record(client(1), Reason::CredentialInvalid, 0);
    assert_eq!(book.score(&client(1), MINUTE), 2.0);
    assert_eq!(book.record(client(1), Reason::NoRoute, 2 * MINUTE), Outcome::Scored(2.0));
}

#[test]
fn a_banned_client_is_not_banned_again_until_its_ban_has_ended() {
    let mut book = Book::new(settings());
    assert_eq!(until_banned(&mut book, client(1), 0), (10, 1));
    for _ in 0..100 {
        let late = book.record(client(1), Reason::CredentialInvalid, 10 * MINUTE - 1);
        assert_eq!(late, Outcome::Ignored);
    }
    assert_eq!(until_banned(&mut book, client(1), 10 * MINUTE), (40, 2));
}

#[test]
fn bans_grow_to_a_maximum_and_are_forgotten_in_the_end() {
    let mut book = Book::new(settings());
    assert_eq!(until_banned(&mut book, client(1), 0), (10, 1));
    assert_eq!(until_banned(&mut book, client(1), 20 * MINUTE), (40, 2));
    assert_eq!(until_banned(&mut book, client(1), 100 * MINUTE), (60, 3));
    let last_end = 160 * MINUTE;
    let forgotten = last_end + settings().forget_after_ns;
    assert_eq!(book.strikes(&client(1), forgotten - 1), 3);
    assert_eq!(book.strikes(&client(1), forgotten), 0);
    assert_eq!(until_banned(&mut book, client(1), forgotten), (10, 1));
}

#[test]
fn a_misdeed_puts_off_the_forgetting() {
    let mut book = Book::new(settings());
    until_banned(&mut book, client(1), 0);
    let nearly = settings().forget_after_ns;
    book.record(client(1), Reason::NoRoute, nearly);
    assert_eq!(book.strikes(&client(1), 2 * nearly - 1), 1);
}

#[test]
fn a_restart_forgets_nothing() {
    let mut book = Book::new(settings());
    book.restore(client(1), 2, 5 * MINUTE);
    assert_eq!(book.record(client(1), Reason::NoRoute, 4 * MINUTE), Outcome::Ignored);
    assert_eq!(until_banned(&mut book, client(1), 5 * MINUTE), (60, 3));
}

#[test]
fn a_pardoned_client_starts_anew() {
    let mut book = Book::new(settings());
    until_banned(&mut book, client(1), 0);
    book.pardon(&client(1));
    assert_eq!(until_banned(&mut book, client(1), 1), (10, 1));
}

#[test]
fn a_ban_that_failed_is_earned_again_by_the_next_misdeed() {
    let mut book = Book::new(settings());
    until_banned(&mut book, client(1), 0);
    for (at, minutes, strikes) in [(20 * MINUTE, 40, 2), (100 * MINUTE, 60, 3)] {
        assert_eq!(until_banned(&mut book, client(1), at), (minutes, strikes));
        for _ in 0..3 {
            book.retract(client(1));
            assert_eq!(book.strikes(&client(1), at), strikes - 1);
            assert_eq!(book.score(&client(1), at), settings().threshold);
            let again = Outcome::Ban { duration_ns: minutes * MINUTE, strikes };
            assert_eq!(book.record(client(1), Reason::NoRoute, at), again);
        }
    }
}

#[test]
fn a_first_ban_that_failed_leaves_a_client_without_strikes() {
    let mut book = Book::new(settings());
    book.retract(client(1));
    assert!(book.is_empty());
    until_banned(&mut book, client(1), 0);
    book.retract(client(1));
    assert!(book.struck.find(&client(1)).is_none());
    assert_eq!((book.len(), book.strikes(&client(1), 0)), (1, 0));
    assert_eq!(book.record(client(1), Reason::CredentialInvalid, MINUTE), Outcome::Scored(14.0));
}

#[test]
fn only_the_clients_own_faults_count() {
    let mut book = Book::new(settings());
    for _ in 0..100 {
        assert_eq!(book.record(client(1), Reason::UpstreamTimeout, 0), Outcome::Ignored);
        assert_eq!(book.record(client(1), Reason::Serve, 0), Outcome::Ignored);
    }
    assert!(book.is_empty());
    let all = Scores::new(Reason::ALL.iter().map(|reason| (*reason, 5.0)));
    for reason in Reason::ALL {
        assert_eq!(all.of(*reason) > 0.0, reason.blame() == Blame::Client, "{reason:?}");
    }
    let wrong = [f64::NAN, f64::INFINITY, -1.0].map(|points| (Reason::NoRoute, points));
    assert!(wrong.into_iter().all(|points| Scores::new([points]).of(Reason::NoRoute) == 0.0));
}

#[test]
fn a_flood_of_strangers_neither_grows_the_book_nor_frees_the_struck() {
    let mut book = Book::new(settings());
    for number in 0..10 {
        until_banned(&mut book, client(number), 0);
    }
    for number in 0..50_000 {
        book.record(client(1000 + number), Reason::NoRoute, MINUTE);
    }
    assert_eq!(book.len(), 1000);
    assert_eq!(book.evicted(), 50_000 - 990);
    for number in 0..10 {
        assert_eq!(book.strikes(&client(number), MINUTE), 1);
    }
}

#[test]
fn the_worst_scorer_outlives_a_flood() {
    let mut book = Book::new(settings());
    for _ in 0..4 {
        book.record(client(1), Reason::CredentialInvalid, 0);
    }
    for number in 0..50_000 {
        book.record(client(1000 + number), Reason::NoRoute, SECOND);
    }
    assert!(book.score(&client(1), SECOND) > 15.0);
}

#[test]
fn forgotten_bans_make_room_before_live_scores() {
    let mut book = Book::new(Settings { clients_max: 2, ..settings() });
    until_banned(&mut book, client(1), 0);
    let later = 20 * MINUTE + settings().forget_after_ns;
    book.record(client(2), Reason::NoRoute, later);
    book.record(client(3), Reason::NoRoute, later);
    assert_eq!((book.score(&client(2), later), book.score(&client(3), later)), (1.0, 1.0));
    assert_eq!((book.len(), book.evicted()), (2, 1));
}

#[test]
fn a_smaller_book_makes_room_at_once() {
    let mut book = Book::new(settings());
    for number in 0..100 {
        book.record(client(number), Reason::NoRoute, 0);
    }
    book.configure(Settings { clients_max: 7, ..settings() });
    assert_eq!(book.len(), 7);
    book.configure(Settings { clients_max: 0, ..settings() });
    assert_eq!(book.record(client(1), Reason::NoRoute, 0), Outcome::Ignored);
    assert!(book.is_empty());
}

proptest! {
    /// Against a model that keeps every misdeed: the score is the sum of what is left of each.
    #[test]
    fn a_ban_comes_exactly_at_the_threshold(gaps in proptest::collection::vec(0..90 * SECOND, 1..80)) {
        let mut book = Book::new(settings());
        let mut misdeeds: Vec<u64> = Vec::new();
        let mut now = 0;
        for gap in gaps {
            now += gap;
            misdeeds.push(now);
            let left = |at: &u64| 4.0 * 0.5_f64.powf((now - at) as f64 / MINUTE as f64);
            let score: f64 = misdeeds.iter().map(left).sum();
            match book.record(client(1), Reason::CredentialInvalid, now) {
                Outcome::Scored(told) => {
                    prop_assert!((told - score).abs() < 1e-6 && told < 20.0);
                }
                Outcome::Ban { duration_ns, .. } => {
                    prop_assert!(score > 20.0 - 1e-6);
                    prop_assert!(duration_ns <= settings().ban_max_ns);
                    misdeeds.clear();
                    now += duration_ns;
                }
                Outcome::Ignored => prop_assert!(false, "ignored"),
            }
        }
    }

    #[test]
    fn the_order_of_arrival_is_irrelevant(mut times in proptest::collection::vec(0..MINUTE, 1..4)) {
        let score = |times: &[u64]| {
            let mut book = Book::new(settings());
            for at in times {
                book.record(client(1), Reason::CredentialInvalid, *at);
            }
            book.score(&client(1), MINUTE)
        };
        let arrived = score(&times);
        times.sort_unstable();
        prop_assert!((arrived - score(&times)).abs() < 1e-9);
    }

    #[test]
    fn the_book_agrees_with_itself_under_any_history(
        history in proptest::collection::vec((0_u32..12, 0..5 * MINUTE, 0_u8..20), 1..300),
    ) {
        let mut book = Book::new(Settings { clients_max: 5, ..settings() });
        let mut now = 0;
        for (who, gap, what) in history {
            now += gap;
            match what {
                0 => book.pardon(&client(who)),
                1 => book.restore(client(who), 1, now),
                2 => book.retract(client(who)),
                _ => { book.record(client(who), Reason::CredentialInvalid, now); }
            }
            prop_assert!(book.len() <= 5);
            let known = (0..12).filter(|n| {
                book.fresh.find(&client(*n)).is_some() || book.struck.find(&client(*n)).is_some()
            });
            prop_assert_eq!(known.count(), book.len());
        }
    }
}
