//! No protection is the only one: each attack, with each layer switched off in turn. Where another layer is
//! to hold, it holds; where one alone can know, the table says so; and nothing else opens.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use edge_identity::key::Secret;
use edge_tests::{
    Edged, Lab, Origin,
    client::{HOST, Request, raw_https, reaches, until},
    daemon::binary,
    issuer::{AUDIENCE, ISSUER, Signer, encode, jwks, now_s},
    lab::{ATTACKER, CLIENT, DENIED, FRIEND, LISTED},
};
use serde_json::json;

use self::{Layer::*, Seen::*};

/// What can be switched off by itself. Who somebody is cannot: a route that asks nobody can demand nothing
/// more (`who_is_asked_nothing_can_be_held_to_nothing`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    /// The packet filter counts what it would drop.
    Filter,
    /// Nobody is on the deny list.
    DenyList,
    /// No limit by source.
    PerSource,
    /// No limit by key.
    PerKey,
    /// Verdicts are observed, and no more.
    Verdicts,
    /// Routes ask for no scopes.
    Scopes,
    /// Routes ask whose nothing is.
    Owners,
    /// Keys may go anywhere.
    Places,
    /// What policies would refuse is counted.
    Policies,
    /// Requests with cookies may come from other sites' pages.
    CrossSite,
}

const LAYERS: [Option<Layer>; 11] = [
    None,
    Some(Filter),
    Some(DenyList),
    Some(PerSource),
    Some(PerKey),
    Some(Verdicts),
    Some(Scopes),
    Some(Owners),
    Some(Places),
    Some(Policies),
    Some(CrossSite),
];

/// What comes of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Packets are dropped.
    Silence,
    /// It gets this status.
    Status(u16),
    /// It reaches the upstream.
    Open,
    /// It reaches the upstream without what it came with.
    Stripped,
}

struct Attack {
    what: &'static str,
    /// What comes of it, and how many requests of it reached the upstream.
    run: fn(&Field<'_>) -> Result<(Seen, u64)>,
    seen: Seen,
    /// What comes of it instead with a layer off.
    without: &'static [(Layer, Seen)],
}

const ATTACKS: [Attack; 20] = [
    Attack {
        what: "a denied source asks for what is open",
        run: |field| field.knock(LISTED, "/health"),
        seen: Silence,
        // Nobody else knows that it is denied.
        without: &[(Filter, Open), (DenyList, Open)],
    },
    Attack {
        what: "a denied source asks for what is not",
        run: |field| field.knock(LISTED, "/guarded"),
        seen: Silence,
        without: &[(Filter, Status(401)), (DenyList, Status(401))],
    },
    Attack {
        what: "no credential",
        run: |field| judge(field.get("/guarded")),
        seen: Status(401),
        without: &[],
    },
    Attack {
        what: "a wrong key",
        run: |field| judge(field.get("/guarded").key(&unknown())),
        seen: Status(401),
        without: &[],
    },
    Attack {
        what: "a revoked key",
        run: |field| judge(field.get("/guarded").key(&field.revoked)),
        seen: Status(401),
        without: &[],
    },
    Attack {
        what: "a key from elsewhere than it may come from",
        run: |field| judge(field.get("/guarded").key(&field.elsewhere)),
        seen: Status(403),
        without: &[],
    },
    Attack {
        what: "a key without the scope",
        run: |field| judge(field.get("/guarded").key(&field.poor)),
        // With either of scopes and policies off, the other refuses.
        seen: Status(403),
        without: &[],
    },
    Attack {
        what: "a token without the scope",
        run: |field| field.token(&field.signer, &[("scope", json!("other"))]),
        seen: Status(403),
        without: &[],
    },
    Attack {
        what: "a token that nobody signed",
        run: |field| {
            let part = |value: serde_json::Value| encode(value.to_string().as_bytes());
            let head = part(json!({"alg": "none", "typ": "at+jwt", "kid": "k1"}));
            judge(field.bearer(&format!("{head}.{}.", part(field.signer.claims()))))
        },
        seen: Status(401),
        without: &[],
    },
    Attack {
        what: "a token that another key signed",
        run: |field| field.token(&Signer::new("k1")?, &[]),
        seen: Status(401),
        without: &[],
    },
    Attack {
        what: "a token that has ended",
        run: |field| {
            let ended = [("iat", json!(now_s() - 600)), ("exp", json!(now_s() - 300))];
            field.token(&field.signer, &ended)
        },
        seen: Status(401),
        without: &[],
    },
    Attack {
        what: "what is another's",
        run: |field| judge(field.get("/users/bob").key(&field.alice)),
        // Ownership, the key's places and a policy: any two of them hold without the third.
        seen: Status(403),
        without: &[],
    },
    Attack {
        what: "what is another's, by way of one's own",
        run: |field| judge(field.get("/users/alice/%2e%2e/bob").key(&field.alice)),
        seen: Status(403),
        without: &[],
    },
    Attack {
        what: "another method",
        run: |field| judge(field.get("/guarded").key(&field.reader).method("DELETE")),
        seen: Status(405),
        without: &[],
    },
    Attack {
        what: "a request that is two",
        run: |field| {
            let head = format!("POST /guarded HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n");
            let two = format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
            let answer = raw_https(field.lab, FRIEND, two.as_bytes())?;
            let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
            Ok((Status(status.with_context(|| answer.clone())?), 0))
        },
        seen: Status(400),
        without: &[],
    },
    Attack {
        what: "a signed request again",
        run: |field| {
            let headers = field.sign("/signed")?;
            let send = || {
                let request = field.get("/signed");
                headers.iter().fold(request, |all, (name, value)| all.header(name, value))
            };
            assert_eq!(judge(send())?, (Open, 1));
            let (seen, passed) = judge(send())?;
            Ok((seen, passed + 1))
        },
        seen: Status(401),
        without: &[],
    },
    Attack {
        what: "a key in the URL",
        run: |field| judge(field.get(&format!("/guarded?api_key={}", field.shown))),
        seen: Status(400),
        without: &[],
    },
    Attack {
        what: "somebody else's page posts with cookies",
        run: |field| {
            let post = field.get("/form").method("POST").header("Cookie", "sid=1");
            judge(post.header("Origin", "https://evil.test"))
        },
        seen: Status(403),
        // Cookies are the upstream's: the edge knows nothing else of who sends them.
        without: &[(CrossSite, Open)],
    },
    Attack {
        what: "headers that say who one is",
        run: |field| {
            let request = field.get("/guarded").key(&field.reader);
            let request = request.header("X-Edged-Principal", "root");
            let answer = request.header("X-Edged-Roles", "admin").send()?;
            assert_eq!(answer.status, 200, "{answer:?}");
            let text = answer.text();
            let leaks = ["root", "admin"].iter().any(|word| text.contains(word));
            Ok((if leaks { Open } else { Stripped }, 1))
        },
        seen: Stripped,
        without: &[],
    },
    Attack {
        what: "a flood of good requests",
        run: |field| {
            let request = field.edged.get(CLIENT, "/guarded").key(&field.busy);
            let statuses = request.send_many(2 * BURST)?;
            let passed = statuses.iter().filter(|status| **status == 200).count() as u64;
            // As much as one limit has room for, and what comes back meanwhile.
            ensure!((u64::from(BURST)..u64::from(2 * BURST)).contains(&passed), "{statuses:?}");
            ensure!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
            let last = statuses.into_iter().find(|status| *status != 200);
            Ok((Status(last.context("one")?), passed))
        },
        // By source and by key: either holds without the other.
        seen: Status(429),
        without: &[],
    },
];

/// Comes last, as its sender is banned.
const GUESSES: Attack = Attack {
    what: "keys are guessed",
    run: |field| {
        let mut seen = Status(0);
        for _ in 0..12 {
            if !reaches(field.lab, ATTACKER, 443) {
                break;
            }
            let guess = field.edged.get(ATTACKER, "/guarded").key(&unknown());
            // One that is cut off by the ban has no answer.
            if let Ok(answer) = guess.arg("--max-time", "3").send() {
                ensure!(answer.status != 200, "{answer:?}");
                seen = Status(answer.status);
            }
        }
        let is_banned = field.edged.banned(ATTACKER)? && !reaches(field.lab, ATTACKER, 443);
        Ok((if is_banned { Silence } else { seen }, 0))
    },
    seen: Silence,
    // Each guess is still one wrong key.
    without: &[(Filter, Status(401)), (Verdicts, Status(401))],
};

/// Requests that a limit lets through at once.
const BURST: u32 = 60;

/// Where attacks come to pass: a daemon without a layer, and those who are good for something there.
struct Field<'a> {
    lab: &'a Lab,
    edged: Edged<'a>,
    signer: Signer,
    reader: String,
    busy: String,
    poor: String,
    shown: String,
    alice: String,
    elsewhere: String,
    revoked: String,
    signing: (String, String),
}

fn judge(request: Request<'_>) -> Result<(Seen, u64)> {
    Ok(match request.send()?.status {
        200 => (Open, 1),
        status => (Status(status), 0),
    })
}

impl<'a> Field<'a> {
    fn new(lab: &'a Lab, off: Option<Layer>) -> Result<Self> {
        let signer = Signer::new("k1")?;
        fs::write(lab.dir().join("issuer.json"), jwks(&[&signer]))?;
        fs::write(lab.dir().join("readers.cedar"), READERS)?;
        fs::write(lab.dir().join("owners.cedar"), OWNERS)?;
        let limit = |layer| match off == Some(layer) {
            true => "\"off\"".to_owned(),
            false => format!("{{ rate = \"{BURST}/h\", burst = {BURST} }}"),
        };
        let denied = if off == Some(DenyList) { String::new() } else { format!("{DENIED:?}") };
        let spared = if off == Some(Verdicts) { ATTACKER } else { CLIENT };
        let edged = lab
            .edged()?
            .set("kernel.monitor", if off == Some(Filter) { "true" } else { "false" })
            .set("lists.deny", &format!("[{denied}]"))
            .set("limits.per_source", &limit(PerSource))
            .set("limits.per_key", &limit(PerKey))
            .set("verdicts.never_ban", &format!("[\"{CLIENT}/32\", \"{spared}/32\"]"))
            .append(&routes(off))?
            .start()?;
        let key = |line: &str| -> Result<(String, String)> {
            let made = edged.ask(&format!("key create {line}"))?;
            let word = |name: &str| made[name].as_str().map(str::to_owned).context("told");
            Ok((word("id")?, word("key")?))
        };
        let scoped =
            |name: &str| Ok::<_, anyhow::Error>(key(&format!("--name {name} --scopes read"))?.1);
        let places = if off == Some(Places) { "" } else { " --routes /users/alice" };
        let (revoked_id, revoked) = key("--name revoked --scopes read")?;
        edged.tell(&format!("key revoke {revoked_id}"))?;
        let signs = edged.ask("key create --name signs --signing")?;
        let word = |name: &str| signs[name].as_str().map(str::to_owned).context("told");
        let file = lab.dir().join("signs.hex");
        fs::write(&file, word("signing_secret")?)?;
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(Self {
            signing: (word("id")?, file.display().to_string()),
            reader: scoped("reader")?,
            busy: scoped("busy")?,
            shown: scoped("shown")?,
            poor: key("--name poor")?.1,
            alice: key(&format!("--name alice{places}"))?.1,
            elsewhere: key("--name elsewhere --scopes read --allow-cidr 192.0.2.0/24")?.1,
            revoked,
            lab,
            edged,
            signer,
        })
    }

    /// From somebody whom no ban and no packet limit is about.
    fn get(&self, path: &str) -> Request<'_> {
        self.edged.get(FRIEND, path)
    }

    fn bearer(&self, token: &str) -> Request<'_> {
        self.get("/guarded").header("Authorization", &format!("Bearer {token}"))
    }

    fn token(&self, by: &Signer, changed: &[(&str, serde_json::Value)]) -> Result<(Seen, u64)> {
        let mut claims = by.claims();
        changed.iter().for_each(|(name, value)| claims[*name] = value.clone());
        judge(self.bearer(&by.token(&claims)))
    }

    fn knock(&self, source: &str, path: &str) -> Result<(Seen, u64)> {
        if !reaches(self.lab, source, 443) {
            return Ok((Silence, 0));
        }
        judge(self.edged.get(source, path))
    }

    fn sign(&self, path: &str) -> Result<Vec<(String, String)>> {
        let (id, file) = &self.signing;
        let mut sign = Command::new(binary("edgectl")?);
        sign.args(["sign", "--key-id", id, "--key-file", file, "--headers"]);
        let done = sign.args(["--url", &format!("https://{HOST}{path}")]).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let text = String::from_utf8(done.stdout)?;
        let pair = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_owned(), v.to_owned()));
        Ok(text.lines().filter_map(pair).collect())
    }

    /// Who is good for something gets it, whatever is off; how many reached the upstream.
    fn serve(&self) -> Result<u64> {
        let token = self.signer.token(&self.signer.claims());
        let own_page = self.get("/form").method("POST").header("Cookie", "sid=1");
        let good = [
            self.get("/guarded").key(&self.reader),
            self.bearer(&token),
            self.get("/users/alice").key(&self.alice),
            own_page.header("Origin", &format!("https://{HOST}")),
            self.edged.get(ATTACKER, "/health"),
        ];
        good.into_iter()
            .map(|request| {
                let (seen, passed) = judge(request)?;
                assert_eq!(seen, Open);
                Ok(passed)
            })
            .sum()
    }
}

/// A key that is well formed, and nobody's.
fn unknown() -> String {
    Secret::mint("edged", &[1; 32]).expose().to_owned()
}

/// Routes with more than one layer each, but for the one that is off.
fn routes(off: Option<Layer>) -> String {
    let unless = |layer, line: &'static str| if off == Some(layer) { "" } else { line };
    let scopes = unless(Scopes, "scopes = [\"read\"]");
    let mode = if off == Some(Policies) { "shadow" } else { "enforce" };
    let owner = unless(Owners, "owner = { path = \"/users/{id}\", equals = \"name\" }");
    let csrf = off != Some(CrossSite);
    format!(
        r#"
[[issuer]]
name = "own"
issuer = "{ISSUER}"
audience = ["{AUDIENCE}"]
key_files = ["issuer.json"]

[[policy]]
name = "readers"
files = ["readers.cedar"]
mode = "{mode}"

[[policy]]
name = "owners"
files = ["owners.cedar"]
mode = "{mode}"

[[route]]
path = "/guarded"
methods = ["GET", "POST"]
auth = ["key", "jwt"]
{scopes}
policies = ["readers"]
upstream = "api"

[[route]]
path = "/users"
methods = ["GET"]
auth = "key"
{owner}
policies = ["owners"]
upstream = "api"

[[route]]
path = "/signed"
methods = ["GET"]
auth = "signature"
upstream = "api"

[[route]]
path = "/form"
methods = ["POST"]
auth = "none"
csrf = {csrf}
upstream = "api"
"#
    )
}

const READERS: &str = r#"
permit(principal, action, resource) when { principal.scopes.contains("read") };
"#;

const OWNERS: &str = r#"
permit(principal, action, resource);
forbid(principal, action, resource)
when { context.path like "/users/bob*" } unless { principal.name == "bob" };
"#;

/// All attacks, with this layer off.
fn attack(off: Option<Layer>) -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let field = Field::new(&lab, off)?;
    let mut passed = field.serve()?;
    for attack in ATTACKS.iter().chain([&GUESSES]) {
        let exception = attack.without.iter().find(|(layer, _)| Some(*layer) == off);
        let expected = exception.map_or(attack.seen, |(_, seen)| *seen);
        let (seen, reached) =
            (attack.run)(&field).with_context(|| format!("{} without {off:?}", attack.what))?;
        assert_eq!(seen, expected, "{} without {off:?}: {}", attack.what, field.edged.log());
        passed += reached;
        assert_eq!(origin.seen(), passed, "{} without {off:?}", attack.what);
    }
    Ok(())
}

#[test]
fn every_attack_is_refused_with_any_one_layer_off() -> Result<()> {
    for pair in LAYERS.chunks(2) {
        std::thread::scope(|scope| {
            let running: Vec<_> = pair.iter().map(|off| scope.spawn(|| attack(*off))).collect();
            running.into_iter().try_for_each(|one| one.join().expect("no panic"))
        })?;
    }
    Ok(())
}

/// To ask nobody who they are is no way to open what asks for more than that.
#[test]
fn who_is_asked_nothing_can_be_held_to_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    fs::write(lab.dir().join("readers.cedar"), READERS)?;
    let edged = lab.edged()?.start()?;
    let (path, route) = (lab.dir().join("edged.toml"), "\n[[route]]\npath = \"/open\"\n");
    let file = fs::read_to_string(&path)?;
    let policy = "\n[[policy]]\nname = \"readers\"\nfiles = [\"readers.cedar\"]\n";
    for demand in [
        "scopes = [\"read\"]",
        "any_scope = [\"read\"]",
        "roles = [\"reader\"]",
        "owner = { path = \"/open/{id}\", equals = \"sub\" }",
        "policies = [\"readers\"]",
    ] {
        let more = format!("methods = [\"GET\"]\nauth = \"none\"\n{demand}\nupstream = \"api\"\n");
        fs::write(&path, format!("{file}{policy}{route}{more}"))?;
        let done = edged.ctl("reload")?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && words.contains("without a caller"), "{demand}: {words}");
        until("nothing is opened", Duration::from_secs(5), || {
            Ok(edged.get(FRIEND, "/open").send()?.status == 401)
        })?;
    }
    Ok(())
}
