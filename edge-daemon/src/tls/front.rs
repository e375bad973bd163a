//! What handshakes go by: certificates, tickets and trust, each of which may be replaced while
//! connections go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use edge_policy::ja4::{Hello, Ja4};
use rustls::{
    NamedGroup, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, UnixTime},
    server::{ClientHello, NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};

use super::{
    CertificateState, Change, Pair, State, TlsError,
    accept::Failure,
    acme,
    choice::Choice,
    tickets::Tickets,
    trust::{self, Question, Trust},
    watch::{Part, Watch},
};
use crate::{
    clock,
    config::settings::{self, ClientAuth, UnknownName},
};

/// The server's side of TLS, as the configuration wants it.
pub struct Front {
    settings: settings::Tls,
    tickets: Option<Arc<Tickets>>,
    served: ArcSwap<Served>,
    /// Certificates that were fetched, by name.
    fetched: Mutex<BTreeMap<String, Arc<Pair>>>,
    /// What proves a name to the authority that is asked for its certificate.
    challenges: ArcSwap<BTreeMap<String, Arc<ServerConfig>>>,
    watch: Mutex<Watch>,
    /// What was logged as past its time, and is so still.
    lapses: Mutex<BTreeSet<String>>,
}

/// What is served now; replaced whole.
struct Served {
    pairs: Vec<Arc<Pair>>,
    trust: Option<Arc<Trusted>>,
    choice: Arc<Choice>,
    /// By whether clients are asked for certificates, and whether they offer post-quantum keys.
    configs: [[Option<Arc<ServerConfig>>; 2]; 3],
}

/// Trust, and the tickets of sessions under it: a session never outlives what it was judged by.
#[derive(Debug)]
struct Trusted {
    trust: Arc<Trust>,
    /// Of those who may have a certificate, and of those who must: these are asked, whatever session they have.
    tickets: Option<[Arc<Tickets>; 2]>,
}

impl Front {
    /// Reads all that the settings name; if they are the same, the former front goes on. Sessions
    /// can be resumed as far as what they were judged by is the same.
    pub fn new(settings: settings::Tls, former: Option<&Arc<Self>>) -> Result<Arc<Self>, TlsError> {
        if let Some(former) = former.filter(|former| former.settings == settings) {
            return Ok(Arc::clone(former));
        }
        // Before the files are read: what changes meanwhile is read again.
        let watch = Mutex::new(Watch::new(&settings));
        let pairs = settings.certificates.iter().map(Pair::read).map(|pair| pair.map(Arc::new));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let kept = former.and_then(|former| former.tickets.clone());
        let tickets = match (settings.ticket_rotation, kept) {
            (Some(rotation), Some(kept)) if kept.rotation() == rotation => Some(kept),
            (Some(rotation), _) => Some(Tickets::new(rotation)?),
            (None, _) => None,
        };
        let former = former.map(|former| former.served.load_full());
        if let Some(former) = &former {
            none_is_worse(&settings, &pairs, &former.pairs)?;
        }
        let former = former.as_ref().and_then(|served| served.trust.as_ref());
        let trust = read_trust(&settings, former)?;
        if let Some((path, doubt)) = worse_trust(trust.as_ref(), former) {
            return Err(TlsError::Worse { path, doubt });
        }
        let fetched = settings.acme.as_ref().map(acme::kept).unwrap_or_default();
        let all = pairs.into_iter().chain(fetched.values().cloned()).collect();
        let served = ArcSwap::from_pointee(Served::new(&settings, tickets.as_ref(), all, trust)?);
        let (fetched, challenges) = (Mutex::new(fetched), ArcSwap::default());
        let lapses = Mutex::default();
        Ok(Arc::new(Self { settings, tickets, served, fetched, challenges, watch, lapses }))
    }

    /// What a client that says this is shown.
    pub(super) fn choose(
        &self,
        auth: ClientAuth,
        hello: &ClientHello<'_>,
        seen: Option<&Hello>,
        ja4: Option<Ja4>,
    ) -> Result<Arc<ServerConfig>, Failure> {
        let served = self.served.load();
        if ja4.is_some_and(|ja4| self.settings.ja4_deny.contains(&ja4)) {
            return Err(Failure::FingerprintDenied);
        }
        if served.choice.candidates(hello.server_name()).is_none() {
            return Err(self.unserved(hello.server_name()));
        }
        let offers_pq = seen.is_some_and(|seen| {
            seen.version == 0x0304 && seen.groups.contains(&u16::from(NamedGroup::X25519MLKEM768))
        });
        let config = &served.configs[auth as usize][usize::from(offers_pq)];
        // The configuration lets no listener ask for certificates without an authority.
        config.clone().ok_or(Failure::CertificateRefused)
    }

    /// Why nothing is shown for a name: it is unknown, or what it is to be shown is not there yet.
    fn unserved(&self, name: Option<&str>) -> Failure {
        let names = self.settings.acme.iter().flat_map(|acme| &acme.names);
        let is_any = self.settings.unknown_name == UnknownName::Default;
        let name = name.map(str::to_ascii_lowercase);
        let mut awaited = names.filter(|awaited| is_any || Some(*awaited) == name.as_ref());
        awaited.next().map_or(Failure::UnknownName, |_| Failure::CertificateAwaited)
    }

    /// The settings of what is fetched.
    #[must_use]
    pub fn acme(&self) -> Option<&settings::Acme> {
        self.settings.acme.as_ref()
    }

    /// The certificate that was fetched for a name.
    pub(super) fn fetched(&self, name: &str) -> Option<Arc<Pair>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Serves a certificate that was fetched.
    pub(super) fn adopt(&self, name: &str, pair: Pair) -> Result<(), TlsError> {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.insert(name.to_owned(), Arc::new(pair));
        let served = self.served.load_full();
        let own = served.pairs.iter().take(self.settings.certificates.len()).cloned();
        let all = own.chain(fetched.values().cloned()).collect();
        let trust = served.trust.clone();
        let served = Served::new(&self.settings, self.tickets.as_ref(), all, trust)?;
        self.served.store(Arc::new(served));
        Ok(())
    }

    /// Has a name proved to who asks for the proof, or no more.
    pub(super) fn set_challenge(&self, name: &str, config: Option<&Arc<ServerConfig>>) {
        self.challenges.rcu(|challenges| {
            let mut challenges = BTreeMap::clone(challenges);
            match config {
                Some(config) => challenges.insert(name.to_owned(), Arc::clone(config)),
                None => challenges.remove(name),
            };
            challenges
        });
    }

    /// What proves the name that a hello asks for, if it asks for the proof.
    pub(super) fn challenge(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let asks = hello.alpn().is_some_and(|mut names| names.any(|name| name == acme::PROOF));
        let name = hello.server_name().filter(|_| asks)?.to_ascii_lowercase();
        self.challenges.load().get(&name).cloned()
    }

    /// Whether a chain that was good at its handshake is so still, by what is known now.
    #[must_use]
    pub fn still_trusts_chain(&self, chain: &[Box<[u8]>]) -> bool {
        let chain: Vec<_> = chain.iter().map(|one| CertificateDer::from(&**one)).collect();
        self.judge(&chain).is_ok()
    }

    /// Judges the chain of a resumed session by what is known now.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<(), Failure> {
        let served = self.served.load();
        let trusted = served.trust.as_ref().ok_or(Failure::CertificateRefused)?;
        trusted.trust.verify(chain, UnixTime::now()).map_err(|error| Failure::from(&error))
    }

    /// What is served now and how it is.
    #[must_use]
    pub fn state(&self) -> State {
        let (served, now_s) = (self.served.load(), clock::unix_s());
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate = |(n, pair): (usize, &Arc<Pair>)| CertificateState {
            name: pair.title().to_owned(),
            kind: pair.kind(),
            is_stale: watch.is_stale(Part::Pair(n)),
            is_unstapled: pair.unstapled(now_s).is_some(),
        };
        let trust = served.trust.as_ref().map(|trusted| &trusted.trust);
        let is_overdue = trust.is_some_and(|trust| trust.overdue(now_s).next().is_some());
        let pairs = served.pairs.iter().flat_map(|pair| pair.expiries());
        State {
            certificates: served.pairs.iter().enumerate().map(certificate).collect(),
            trust_is_stale: is_overdue || watch.is_stale(Part::Trust),
            expiries: pairs.chain(trust.into_iter().flat_map(|t| t.expiries())).collect(),
        }
    }

    /// Logs, once each, what is past its time without having changed.
    fn tell_lapses(&self) {
        let (served, now_s) = (self.served.load(), clock::unix_s());
        let unstapled = served.pairs.iter().filter_map(|pair| pair.unstapled(now_s));
        let trust = served.trust.iter().flat_map(|trusted| trusted.trust.overdue(now_s));
        let lists = trust.map(|(path, doubt)| format!("{} {doubt}", path.display()));
        let lapses: BTreeSet<_> = unstapled.chain(lists).collect();
        let mut told = self.lapses.lock().unwrap_or_else(PoisonError::into_inner);
        for lapse in lapses.difference(&told) {
            tracing::error!("{lapse}");
        }
        *told = lapses;
    }

    /// Changes ticket keys whose time has come, and takes what has changed on disk and is good.
    /// Whatever is not good stays as it was, and is tried again later; what became of each file is told, if it is news.
    ///
    /// What has changed is left for a second, so that all that belongs together is there; or not.
    pub fn tend(&self, at_once: bool) -> Vec<Change> {
        let served = self.served.load_full();
        let asked = served.trust.iter().filter_map(|trusted| trusted.tickets.as_ref()).flatten();
        for tickets in self.tickets.iter().chain(asked) {
            if let Err(error) = tickets.rotate() {
                tracing::error!(%error, "cannot draw session ticket keys");
            }
        }
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        for part in watch.look(at_once) {
            let result = self.replace(part);
            if watch.note(part, &result) {
                changes.push(Change { what: self.title(part), result });
            }
        }
        drop(watch);
        self.tell_lapses();
        changes
    }

    fn title(&self, part: Part) -> String {
        match part {
            Part::Pair(n) => {
                let certificate = self.settings.certificates.get(n);
                certificate.map_or_else(String::new, |c| c.chain.display().to_string())
            }
            Part::Trust => "the authorities of clients".to_owned(),
        }
    }

    /// Reads one part again and serves it.
    fn replace(&self, part: Part) -> Result<(), String> {
        let served = self.served.load_full();
        let (mut pairs, mut trust) = (served.pairs.clone(), served.trust.clone());
        let mut result = Ok(());
        match part {
            Part::Pair(n) => {
                let files = self.settings.certificates.get(n).ok_or("is not configured")?;
                let mut pair = Pair::read(files).map_err(|fault| fault.to_string())?;
                let now_s = clock::unix_s();
                // A certificate that clients refuse is worse than one that they take.
                if let Some(doubt) = pair.doubt(now_s).filter(|_| pairs[n].doubt(now_s).is_none()) {
                    return Err(format!("{} {doubt}", files.chain.display()));
                }
                // One that another site's clients take is no better.
                if let Some(name) = pair.misses(&pairs[n]) {
                    return Err(format!("{} is not for '{name}'", files.chain.display()));
                }
                result = pair.keep_staple(&pairs[n], now_s).map_or(Ok(()), Err);
                pairs[n] = Arc::new(pair);
            }
            Part::Trust => {
                let read = read_trust(&self.settings, trust.as_ref());
                let read = read.map_err(|error| error.to_string())?;
                if let Some((path, doubt)) = worse_trust(read.as_ref(), trust.as_ref()) {
                    return Err(format!("{} {doubt}", path.display()));
                }
                trust = read;
            }
        }
        let new = Served::new(&self.settings, self.tickets.as_ref(), pairs, trust);
        self.served.store(Arc::new(new.map_err(|error| error.to_string())?));
        result
    }
}

/// Holds if no certificate that clients refuse would be served where they take the former one.
fn none_is_worse(
    settings: &settings::Tls,
    pairs: &[Arc<Pair>],
    former: &[Arc<Pair>],
) -> Result<(), TlsError> {
    let now_s = clock::unix_s();
    for (pair, files) in pairs.iter().zip(&settings.certificates) {
        let Some(doubt) = pair.doubt(now_s) else { continue };
        if former.iter().any(|old| old.doubt(now_s).is_none() && pair.stands_in_for(old)) {
            return Err(TlsError::Worse { path: files.chain.clone(), doubt });
        }
    }
    Ok(())
}

/// A list in new trust that lets nobody in, where the former does let clients in.
fn worse_trust(
    new: Option<&Arc<Trusted>>,
    former: Option<&Arc<Trusted>>,
) -> Option<(PathBuf, String)> {
    let now_s = clock::unix_s();
    let (path, doubt) = new?.trust.lapsed(now_s)?;
    former?.trust.lapsed(now_s).is_none().then(|| (path.to_owned(), doubt))
}

/// Reads whom to trust; sessions are kept if it is the same as before.
fn read_trust(
    settings: &settings::Tls,
    former: Option<&Arc<Trusted>>,
) -> Result<Option<Arc<Trusted>>, TlsError> {
    let Some(trust) = trust::read(&settings.clients)? else { return Ok(None) };
    let kept = former.filter(|former| former.trust.digest == trust.digest);
    let kept = kept.and_then(|former| former.tickets.clone());
    let tickets = match (settings.ticket_rotation, kept) {
        (Some(rotation), Some(kept)) if kept[0].rotation() == rotation => Some(kept),
        (Some(rotation), _) => Some([Tickets::new(rotation)?, Tickets::new(rotation)?]),
        (None, _) => None,
    };
    Ok(Some(Arc::new(Trusted { trust: Arc::new(trust), tickets })))
}

impl Served {
    fn new(
        settings: &settings::Tls,
        tickets: Option<&Arc<Tickets>>,
        pairs: Vec<Arc<Pair>>,
        trust: Option<Arc<Trusted>>,
    ) -> Result<Self, TlsError> {
        let choice = Arc::new(Choice::new(&pairs, settings.unknown_name));
        let mut configs: [[Option<Arc<ServerConfig>>; 2]; 3] = Default::default();
        for auth in [ClientAuth::Off, ClientAuth::Optional, ClientAuth::Required] {
            let question = match (auth, &trust) {
                (ClientAuth::Off, _) => None,
                (_, Some(trusted)) => Some(trusted),
                (_, None) => continue,
            };
            for (i, config) in configs[auth as usize].iter_mut().enumerate() {
                let is_mandatory = auth == ClientAuth::Required;
                let verifier =
                    question.map(|t| Question { trust: Arc::clone(&t.trust), is_mandatory });
                let tickets = question.map_or(tickets, |trusted| {
                    trusted.tickets.as_ref().map(|asked| &asked[usize::from(is_mandatory)])
                });
                *config = Some(Arc::new(config_of(&choice, verifier, tickets, i == 1)?));
            }
        }
        Ok(Self { pairs, trust, choice, configs })
    }
}

fn config_of(
    choice: &Arc<Choice>,
    question: Option<Question>,
    tickets: Option<&Arc<Tickets>>,
    post_quantum: bool,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(provider(post_quantum)))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Config)?;
    let builder = builder.with_client_cert_verifier(match question {
        Some(question) => Arc::new(question),
        None => WebPkiClientVerifier::no_client_auth(),
    });
    let mut config = builder.with_cert_resolver(Arc::clone(choice) as Arc<_>);
    config.alpn_protocols = vec![super::H2.to_vec(), b"http/1.1".to_vec()];
    // Sessions are in tickets or nowhere.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match tickets {
        Some(tickets) => config.ticketer = Arc::clone(tickets) as Arc<_>,
        None => config.send_tls13_tickets = 0,
    }
    Ok(config)
}

/// The library's suites, all of which are safe. Who offers a post-quantum exchange gets it, though
/// it may cost a round trip more: what is recorded today must not be read tomorrow.
fn provider(post_quantum: bool) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if post_quantum {
        provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519MLKEM768);
    }
    provider
}
