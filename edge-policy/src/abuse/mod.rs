//! Abuse: every misdeed adds to a client's score, which decays; a score over the line is a ban.

mod pool;

use edge_common::{Blame, Reason, Source};

use pool::Pool;

/// Points for each reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores([f64; Reason::COUNT]);

impl Scores {
    /// These points, and none for any other reason. Points for a reason that is not the client's
    /// fault, below zero or not finite count as none.
    pub fn new(points: impl IntoIterator<Item = (Reason, f64)>) -> Self {
        let mut scores = [0.0; Reason::COUNT];
        for (reason, points) in points {
            let fair = reason.blame() == Blame::Client && points.is_finite() && points > 0.0;
            scores[reason as usize] = if fair { points } else { 0.0 };
        }
        Self(scores)
    }

    /// Points for this reason.
    #[must_use]
    pub const fn of(&self, reason: Reason) -> f64 {
        self.0[reason as usize]
    }
}

/// What the book goes by.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Points per misdeed.
    pub scores: Scores,
    /// The score that bans.
    pub threshold: f64,
    /// The time in which a score halves.
    pub half_life_ns: u64,
    /// How long a first ban lasts.
    pub ban_first_ns: u64,
    /// How many times longer each further one lasts.
    pub ban_factor: u64,
    /// How long a ban lasts at most.
    pub ban_max_ns: u64,
    /// After this long without a misdeed or a ban, earlier bans are forgotten.
    pub forget_after_ns: u64,
    /// Clients that are watched at once.
    pub clients_max: usize,
}

/// What a misdeed led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing: it carries no points, or the client is banned already.
    Ignored,
    /// The client's score is now this.
    Scored(f64),
    /// The client is to be banned.
    Ban {
        /// For how long.
        duration_ns: u64,
        /// How many bans it has had, this one included.
        strikes: u32,
    },
}

/// The score and the bans of a client.
#[derive(Clone, Copy, Debug, Default)]
struct Client {
    /// As of `at_ns`.
    score: f64,
    at_ns: u64,
    strikes: u32,
    /// When its last ban ends or ended.
    banned_until_ns: u64,
}

/// The scores of the clients that misbehaved of late. Bounded: see [`Book::evicted`].
///
/// Sources are clients, as [`Source::client`] gives them. Times are of one clock throughout.
#[derive(Debug)]
pub struct Book {
    settings: Settings,
    /// Clients that were never banned, or so long ago that it is forgotten.
    fresh: Pool,
    /// Clients with strikes; they leave only when there is no fresh one to take their place.
    struck: Pool,
    evicted: u64,
    /// The latest time it was told.
    now_ns: u64,
}

impl Book {
    /// An empty book.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, fresh: Pool::default(), struck: Pool::default(), evicted: 0, now_ns: 0 }
    }

    /// Goes by other settings from now on; what is known of clients stays.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
        while self.len() > self.settings.clients_max {
            self.evict();
        }
    }

    /// Records what a client did. Misdeeds may arrive out of order.
    pub fn record(&mut self, source: Source, reason: Reason, now_ns: u64) -> Outcome {
        let points = self.settings.scores.of(reason);
        if points <= 0.0 || self.settings.clients_max == 0 {
            return Outcome::Ignored;
        }
        self.now_ns = self.now_ns.max(now_ns);
        let mut client = self.client(&source);
        if now_ns < client.banned_until_ns {
            return Outcome::Ignored;
        }
        if self.forgets(&client, now_ns) {
            client = Client::default();
        }
        client.add(points, now_ns, self.settings.half_life_ns);
        let outcome = if client.score < self.settings.threshold {
            Outcome::Scored(client.score)
        } else {
            client.strikes = client.strikes.saturating_add(1);
            let duration_ns = self.settings.ban_ns(client.strikes);
            client.banned_until_ns = now_ns.saturating_add(duration_ns);
            client.score = 0.0;
            Outcome::Ban { duration_ns, strikes: client.strikes }
        };
        self.put(source, client);
        outcome
    }

    /// Takes over a client from before a restart: its bans, and when the last ends or ended.
    pub fn restore(&mut self, source: Source, strikes: u32, last_ns: u64) {
        if strikes > 0 && self.settings.clients_max > 0 {
            let client =
                Client { strikes, banned_until_ns: last_ns, at_ns: last_ns, ..Client::default() };
            self.put(source, client);
        }
    }

    /// Forgets all of a client, as when an operator lifts its ban.
    pub fn pardon(&mut self, source: &Source) {
        self.fresh.remove(source);
        self.struck.remove(source);
    }

    /// Takes back a client's last ban, which could not be put in force: its score stands at the
    /// threshold and the ban is no strike, so that its next misdeed earns the same ban again.
    pub fn retract(&mut self, source: Source) {
        let client = self.client(&source);
        if client.strikes > 0 {
            let (score, strikes) = (self.settings.threshold, client.strikes - 1);
            // An earlier ban ended before the misdeed that earned this one, at `at_ns`.
            self.put(source, Client { score, strikes, banned_until_ns: 0, ..client });
        }
    }

    /// A client's score.
    #[must_use]
    pub fn score(&self, source: &Source, now_ns: u64) -> f64 {
        self.client(source).score_at(now_ns, self.settings.half_life_ns)
    }

    /// A client's bans that are not forgotten.
    #[must_use]
    pub fn strikes(&self, source: &Source, now_ns: u64) -> u32 {
        let client = self.client(source);
        if self.forgets(&client, now_ns) { 0 } else { client.strikes }
    }

    /// Clients that are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fresh.len() + self.struck.len()
    }

    /// Whether no client is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Clients that were dropped to stay within `clients_max`.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    fn client(&self, source: &Source) -> Client {
        self.struck.find(source).or_else(|| self.fresh.find(source)).unwrap_or_default()
    }

    fn forgets(&self, client: &Client, now_ns: u64) -> bool {
        now_ns.saturating_sub(client.last_ns()) >= self.settings.forget_after_ns
    }

    fn put(&mut self, source: Source, client: Client) {
        let (home, other) = if client.strikes > 0 {
            (&mut self.struck, &mut self.fresh)
        } else {
            (&mut self.fresh, &mut self.struck)
        };
        other.remove(&source);
        let is_known = home.replace(&source, client);
        if is_known {
            return;
        }
        if self.len() >= self.settings.clients_max {
            self.evict();
        }
        let home = if client.strikes > 0 { &mut self.struck } else { &mut self.fresh };
        home.insert(source, client);
    }

    /// Makes room for one: at the cost of a client whose bans are forgotten, or else of one that
    /// was never banned, or else of the one whose last ban is the longest ago.
    fn evict(&mut self) {
        let half_life_ns = self.settings.half_life_ns;
        let oldest = self.struck.idlest(|client| client.last_ns() as f64);
        let stale = oldest.filter(|(_, client)| self.forgets(client, self.now_ns));
        let idlest = stale.or_else(|| self.fresh.idlest(|client| client.rank(half_life_ns)));
        if let Some((source, _)) = idlest.or(oldest) {
            self.pardon(&source);
            self.evicted += 1;
        }
    }
}

impl Settings {
    fn ban_ns(&self, strikes: u32) -> u64 {
        let times = self.ban_factor.max(1).saturating_pow(strikes.saturating_sub(1));
        self.ban_first_ns.saturating_mul(times).min(self.ban_max_ns)
    }
}

impl Client {
    /// Adds points of a misdeed at this time; one that is told late counts as much as it would
    /// have left by now.
    fn add(&mut self, points: f64, now_ns: u64, half_life_ns: u64) {
        let at_ns = self.at_ns.max(now_ns);
        let left = points * decay(at_ns - now_ns, half_life_ns);
        self.score = self.score_at(at_ns, half_life_ns) + left;
        self.at_ns = at_ns;
    }

    /// Its last misdeed, or the end of its last ban.
    fn last_ns(&self) -> u64 {
        self.at_ns.max(self.banned_until_ns)
    }

    /// Orders clients by their scores at any one time: a score doubles with every half-life that
    /// it is younger.
    fn rank(&self, half_life_ns: u64) -> f64 {
        self.score.log2() + self.at_ns as f64 / half_life_ns.max(1) as f64
    }

    fn score_at(&self, now_ns: u64, half_life_ns: u64) -> f64 {
        self.score * decay(now_ns.saturating_sub(self.at_ns), half_life_ns)
    }
}

/// What is left of one point after this long.
fn decay(elapsed_ns: u64, half_life_ns: u64) -> f64 {
    (-(elapsed_ns as f64) / half_life_ns.max(1) as f64).exp2()
}

#[cfg(test)]
mod tests;
