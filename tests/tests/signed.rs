//! Signed requests, as clients that share no code with the edge make them: curl with openssl, Python,
//! Node; and curl with `edgectl sign`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use edge_common::{Blame, Reason};
use edge_tests::{
    Edged, Lab, Origin,
    client::until,
    daemon::{binary, root},
    lab::{CLIENT, EDGE, FRIEND, ORIGIN},
    talk::Dial,
};
use serde_json::Value;

/// A daemon whose `/` takes signed requests alone, and as many of them as come.
fn signing<'a>(lab: &'a Lab, changes: &[(&str, &str)]) -> Result<Edged<'a>> {
    let mut setup = lab
        .edged()?
        .set("route.1.auth", "\"signature\"")
        .set("verdicts.never_ban", &format!("[\"{CLIENT}/32\"]"))
        .set("limits.per_key", "{ rate = \"100000/s\" }");
    for (path, value) in changes {
        setup = setup.set(path, value);
    }
    setup.start()
}

/// A key that signs: its id, and where its secret lies.
struct Signer {
    id: String,
    file: PathBuf,
}

impl Signer {
    /// One whose secret is derived.
    fn derived(lab: &Lab, edged: &Edged<'_>) -> Result<Self> {
        let key: Value = edged.ask("key create --name signer --signing")?;
        let word = |name: &str| key[name].as_str().map(str::to_owned).context("told");
        let (id, secret) = (word("id")?, word("signing_secret")?);
        ensure!(secret.len() == 64, "{key}");
        let file = lab.dir().join(format!("{id}.hex"));
        write_private(&file, &secret)?;
        Ok(Self { id, file })
    }

    /// One with a key pair of its own, made by openssl with these options.
    fn public(lab: &Lab, edged: &Edged<'_>, options: &[&str], algorithm: &str) -> Result<Self> {
        let name = options.concat().replace(|c: char| !c.is_ascii_alphanumeric(), "") + algorithm;
        let (file, public) =
            (lab.dir().join(format!("{name}.pem")), lab.dir().join(format!("{name}.pub")));
        write_private(&file, "")?;
        openssl(&[&["genpkey"], options, &["-out", &text(&file)]].concat())?;
        openssl(&["pkey", "-in", &text(&file), "-pubout", "-out", &text(&public)])?;
        let more =
            if algorithm.is_empty() { String::new() } else { format!(" --algorithm {algorithm}") };
        let line = format!("key create --name pair --public-key {}{more}", public.display());
        let key: Value = edged.ask(&line)?;
        ensure!(key["key"] == "" && key["signing_secret"].is_null(), "{key}");
        Ok(Self { id: key["id"].as_str().context("told")?.to_owned(), file })
    }

    fn secret(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.file)?)
    }

    /// What `edgectl sign` prints.
    fn sign(&self, more: &[&str]) -> Result<String> {
        let mut sign = Command::new(binary("edgectl")?);
        sign.args(["sign", "--key-id", &self.id, "--key-file", &text(&self.file)]).args(more);
        let done = sign.output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?)
    }

    /// The headers of a signed request.
    fn headers(&self, more: &[&str]) -> Result<Vec<(String, String)>> {
        let headers = self.sign(&[more, &["--headers"]].concat())?;
        let pair = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_owned(), v.to_owned()));
        Ok(headers.lines().filter_map(pair).collect())
    }
}

fn write_private(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    Ok(fs::set_permissions(path, mode)?)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn openssl(args: &[&str]) -> Result<()> {
    let done = Command::new("openssl").args(args).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Has a shell run a line in the client's namespace; what it printed.
fn shell(lab: &Lab, line: &str) -> Result<String> {
    let done = lab.client.command("sh").args(["-c", line]).stdin(Stdio::null()).output()?;
    ensure!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// The options by which curl finds the edge, and the one by which it tells the status alone.
fn reaching(edged: &Edged<'_>) -> String {
    let ca = edged.ca.display();
    format!(
        "--http1.1 --silent --show-error --cacert {ca} --interface {FRIEND} --resolve edge.test:443:{EDGE} \
             --output /dev/null --write-out '%{{http_code}}'"
    )
}

/// Sends headers to a path as they are; the status.
fn send(
    edged: &Edged<'_>,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: Option<&str>,
) -> Result<u16> {
    // Over HTTP/1: this curl loses an HTTP/2 answer that comes before it has sent its body.
    let mut request = edged.get(FRIEND, path).method(method).flag("--http1.1");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    if let Some(body) = body {
        request = request.body(body);
    }
    Ok(request.send()?.status)
}

#[test]
fn the_line_that_edgectl_sign_prints_works_once() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = signing(&lab, &[])?;
    let signers = [
        Signer::derived(&lab, &edged)?,
        Signer::public(&lab, &edged, &["-algorithm", "ed25519"], "")?,
        Signer::public(
            &lab,
            &edged,
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            "",
        )?,
    ];
    let body = lab.dir().join("it's a body");
    fs::write(&body, vec![b'x'; 100_000])?;
    let (url, from_file) =
        ("https://edge.test/v1//upload/../orders?b=2&a=1", format!("@{}", body.display()));
    let reaching = reaching(&edged);
    for signer in &signers {
        for scheme in ["v1", "rfc9421"] {
            for more in [&["--method", "GET"][..], &["--method", "POST", "--body", &from_file]] {
                let line = signer.sign(&[&["--scheme", scheme, "--url", url], more].concat())?;
                assert!(!line.contains(signer.secret()?.trim()), "{line}");
                let line = format!("{} {reaching}", line.trim_end());
                assert_eq!(shell(&lab, &line)?, "200", "{line}");
                assert_eq!(shell(&lab, &line)?, "401", "{line}");
            }
        }
    }
    assert_eq!(origin.seen(), 12);
    assert_eq!(edged.metrics()?.requests(Reason::Replayed), 12.0);
    assert_eq!(edged.metrics()?.value("edged_nonces_entries"), 12.0);
    // The id alone, or the key itself, opens nothing.
    for signer in &signers {
        assert_eq!(edged.get(FRIEND, "/").key(&signer.id).send()?.status, 401);
    }
    let shown = edged.tell(&format!("key show {}", signers[0].id))?;
    assert!(
        shown.contains("hmac-sha256") && !shown.contains(signers[0].secret()?.trim()),
        "{shown}"
    );
    Ok(())
}

/// The recipe of `docs/signed-requests.md`.
#[test]
fn a_shell_with_openssl_can_sign() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = signing(&lab, &[])?;
    let signer = Signer::derived(&lab, &edged)?;
    let script = format!(
        "id={} secret={} time=$(date +%s) nonce=0123456789abcdef-$$; \
         sha256=$(printf %s hello | openssl dgst -sha256 -r | cut -d' ' -f1); \
         text=$(printf 'v1\\n%s\\n%s\\n%s\\n%s\\n%s\\n%s\\n%s\\n%s' \
           PUT edge.test /v1/x 'a=1&b=2' \"$time\" \"$nonce\" \"$sha256\" \"$id\"); \
         mac=$(printf %s \"$text\" | openssl dgst -sha256 -mac HMAC -macopt hexkey:$secret -r | cut -d' ' -f1); \
         curl --request PUT -H \"X-API-Key: $id\" -H \"X-Timestamp: $time\" -H \"X-Nonce: $nonce\" \
           -H \"X-Content-SHA256: $sha256\" -H \"X-Signature: v1=$mac\" --data-raw hello \
           'https://edge.test/v1/x?b=2&a=1' {}",
        signer.id,
        signer.secret()?.trim(),
        reaching(&edged)
    );
    assert_eq!(shell(&lab, &script)?, "200");
    Ok(())
}

#[test]
fn node_signs_by_rfc_9421_with_every_algorithm() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = signing(&lab, &[])?;
    // Beside the packages that `cargo xtask setup` installs.
    let clients = root().join("target/clients");
    if !clients.join("node_modules").exists() {
        ensure!(std::env::var_os("EDGED_NEED_PEERS").is_none(), "run `cargo xtask setup`");
        eprintln!("not run: `cargo xtask setup` installs this client, if there is npm");
        return Ok(());
    }
    let script = clients.join("rfc9421.mjs");
    fs::copy(root().join("tests/clients/rfc9421.mjs"), &script)?;
    let rsa = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
    let ec = |curve| ["-algorithm", "EC", "-pkeyopt", curve];
    let pair = |options: &[&str], algorithm| Signer::public(&lab, &edged, options, algorithm);
    let signers = [
        ("hmac-sha256", Signer::derived(&lab, &edged)?),
        ("ed25519", pair(&["-algorithm", "ed25519"], "")?),
        ("ecdsa-p256-sha256", pair(&ec("ec_paramgen_curve:P-256"), "")?),
        ("ecdsa-p384-sha384", pair(&ec("ec_paramgen_curve:P-384"), "")?),
        ("rsa-pss-sha512", pair(&rsa, "")?),
        ("rsa-v1_5-sha256", pair(&rsa, "rsa-v1_5-sha256")?),
    ];
    let ask = |id: &str, algorithm: &str, file: &Path, body: &str| {
        let mut node = lab.client.command("node");
        node.arg(&script).args([
            EDGE,
            &text(&edged.ca),
            id,
            algorithm,
            &text(file),
            "/v1/orders?b=2&a=1",
        ]);
        let done = node.arg(body).output().context("start node")?;
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "{algorithm}: {words}");
        Ok(String::from_utf8(done.stdout)?.trim().to_owned())
    };
    for (algorithm, signer) in &signers {
        for body in ["", "{\"total\": 1}"] {
            assert_eq!(ask(&signer.id, algorithm, &signer.file, body)?, "200 401", "{algorithm}");
        }
    }
    assert_eq!(origin.seen(), 12);
    // The key fixes the algorithm, and another's key is not it.
    let (rsa_pss, ed25519, hmac) = (&signers[4].1, &signers[1].1, &signers[0].1);
    assert_eq!(ask(&rsa_pss.id, "rsa-v1_5-sha256", &rsa_pss.file, "")?, "401 401");
    assert_eq!(ask(&hmac.id, "ed25519", &ed25519.file, "")?, "401 401");
    assert_eq!(ask("000000000000", "ed25519", &ed25519.file, "")?, "401 401");
    assert_eq!(origin.seen(), 12);
    Ok(())
}

#[test]
fn whatever_is_changed_is_refused_alike() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let other = "[[route]]\npath = \"/v1/orders\"\nmethods = [\"POST\", \"PUT\"]\nauth = [\"signature\", \"key\"]\nupstream = \"api\"";
    let edged = lab.edged()?.set("route.1.auth", "\"signature\"").append(other)?.start()?;
    let signer = Signer::derived(&lab, &edged)?;
    let url =
        ["--url", "https://edge.test/v1/orders?a=1&a=2", "--method", "POST", "--body", "hello"];
    for scheme in ["v1", "rfc9421"] {
        let more = [&url[..], &["--scheme", scheme]].concat();
        let good = signer.headers(&more)?;
        let with = |name: &str, value: &str| {
            let mut headers = good.clone();
            headers
                .iter_mut()
                .filter(|(n, _)| n == name)
                .for_each(|(_, v)| v.replace_range(.., value));
            headers
        };
        let path = "/v1/orders?a=1&a=2";
        let hello = Some("hello");
        assert_eq!(send(&edged, "PUT", path, &good, hello)?, 401, "method");
        assert_eq!(send(&edged, "POST", "/v1/orders/1?a=1&a=2", &good, hello)?, 401, "path");
        assert_eq!(send(&edged, "POST", "/v1/orders?a=2&a=1", &good, hello)?, 401, "query");
        assert_eq!(send(&edged, "POST", "/v1/orders", &good, hello)?, 401, "query");
        assert_eq!(send(&edged, "POST", path, &good, Some("hullo"))?, 401, "body");
        // That one was proved by its head, and so used up.
        let good = signer.headers(&more)?;
        let mut elsewhere = good.clone();
        elsewhere.push(("Host".to_owned(), "other.test".to_owned()));
        assert_eq!(send(&edged, "POST", path, &elsewhere, hello)?, 401, "host");
        assert_eq!(send(&edged, "POST", path, &good, None)?, 401, "no body");
        let changes = match scheme {
            "v1" => vec![
                with("x-timestamp", "1700000000"),
                with("x-timestamp", "4000000000"),
                with("x-nonce", "0123456789abcdef"),
                with("x-api-key", "000000000000"),
                with("x-signature", "v1=00"),
                with("x-content-sha256", &"0".repeat(64)),
            ],
            _ => vec![
                with("signature", "sig1=:AAAA:"),
                with("signature-input", "sig1=()"),
                with("content-digest", "sha-256=:AAAA:"),
            ],
        };
        for changed in &changes {
            let mut request =
                edged.get(FRIEND, path).method("POST").flag("--http1.1").body("hello");
            for (name, value) in changed {
                request = request.header(name, value);
            }
            let answer = request.send()?;
            assert_eq!(answer.status, 401, "{changed:?}");
            let document = answer.text();
            let id = answer.header("x-request-id").context("an id")?;
            let same =
                r#"{"type":"about:blank","title":"Unauthorized","status":401,"request_id":""#;
            assert_eq!(document, format!("{same}{id}\"}}"), "{changed:?}");
        }
        let good = signer.headers(&more)?;
        assert_eq!(send(&edged, "POST", path, &good, hello)?, 200, "unchanged");
    }
    // In either scheme once for the body that was another, whose head went upstream and no end, and once
    // for the body that never came.
    assert_eq!(edged.metrics()?.requests(Reason::BodyDigest), 4.0);
    assert_eq!(origin.completed(), 2);
    assert!(edged.metrics()?.requests(Reason::StaleSignature) >= 2.0);
    assert!(edged.metrics()?.requests(Reason::BadSignature) >= 12.0);
    Ok(())
}

#[test]
fn a_login_with_a_forged_body_is_told_as_one() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let login = "[[route]]\npath = \"/login\"\nmethods = [\"POST\"]\nauth = \"signature\"\nupstream = \"api\"\n\
                 login = { account = \"form:user\", failure_statuses = [403] }\n";
    let edged = lab.edged()?.append(login)?.start()?;
    let signer = Signer::derived(&lab, &edged)?;
    let post = ["--url", "https://edge.test/login", "--method", "POST", "--body", "user=one"];
    for (body, status) in [("user=two", 401), ("user=one", 200)] {
        let headers = signer.headers(&post)?;
        assert_eq!(send(&edged, "POST", "/login", &headers, Some(body))?, status, "{body}");
    }
    assert_eq!(edged.metrics()?.requests(Reason::BodyDigest), 1.0);
    assert_eq!(origin.seen(), 1);
    Ok(())
}

#[test]
fn a_large_body_streams_and_a_wrong_one_never_ends() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = signing(&lab, &[])?;
    let signer = Signer::derived(&lab, &edged)?;
    let body = vec![b'y'; 8 << 20];
    let file = lab.dir().join("body");
    fs::write(&file, &body)?;
    let from = format!("@{}", file.display());
    let post = ["--url", "https://edge.test/upload", "--method", "POST", "--body", &from];
    let mut last = body.clone();
    *last.last_mut().context("a byte")? = b'z';
    for scheme in ["v1", "rfc9421"] {
        for framing in [&[][..], &["Transfer-Encoding: chunked"]] {
            for version in ["--http1.1", "--http2"] {
                if version == "--http2" && !framing.is_empty() {
                    continue;
                }
                let ask = |body: &[u8]| -> Result<_> {
                    let headers = signer.headers(&[&post[..], &["--scheme", scheme]].concat())?;
                    let mut request =
                        edged.get(FRIEND, "/upload").method("POST").flag(version).body(body);
                    for (name, value) in headers {
                        request = request.header(&name, &value);
                    }
                    for header in framing {
                        request = request.arg("--header", header);
                    }
                    request.send()
                };
                let before = origin.completed();
                let answer = ask(&body)?;
                assert_eq!(
                    (answer.status, answer.text()),
                    (200, (8 << 20).to_string()),
                    "{scheme}"
                );
                assert_eq!(origin.completed(), before + 1);
                let answer = ask(&last)?;
                assert_eq!(answer.status, 401, "{scheme} {framing:?} {version}");
                assert_eq!(ask(&body[..5_000_000])?.status, 401, "{scheme} {framing:?} {version}");
                assert_eq!(origin.completed(), before + 1, "a wrong body came to its end");
            }
        }
    }
    assert_eq!(edged.metrics()?.requests(Reason::BodyDigest), 12.0);
    Ok(())
}

/// Runs the Python client; how many answers there were of each status.
fn python(lab: &Lab, edged: &Edged<'_>, verb: &str, more: &[&str]) -> Result<Value> {
    let script = root().join("tests/clients/signed.py");
    let mut python = lab.client.command("python3");
    python.arg(script).args([verb, EDGE, &text(&edged.ca)]).args(more);
    let done = python.output().context("start python3")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(serde_json::from_slice(&done.stdout)?)
}

#[test]
fn nothing_is_replayed_across_a_kill_and_a_restart() -> Result<()> {
    const REQUESTS: u64 = 400;
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let mut edged = signing(&lab, &[])?;
    let signer = Signer::derived(&lab, &edged)?;
    let (secret, kept) = (signer.secret()?, text(&lab.dir().join("requests.jsonl")));
    let (id, count) = (signer.id.as_str(), REQUESTS.to_string());
    let sent = python(&lab, &edged, "send", &[id, &secret, &count, &kept])?;
    assert_eq!(sent, serde_json::json!({"200": REQUESTS}));
    let all_refused = serde_json::json!({"401": REQUESTS});
    assert_eq!(python(&lab, &edged, "replay", &[&kept])?, all_refused);
    edged.kill9()?;
    edged.start_again()?;
    assert_eq!(python(&lab, &edged, "replay", &[&kept])?, all_refused);
    assert_eq!(edged.metrics()?.requests(Reason::Replayed), REQUESTS as f64);
    assert_eq!(origin.seen(), REQUESTS);
    // What was signed before and did not come yet is as good as ever, and so is what comes now.
    let fresh = python(&lab, &edged, "send", &[id, &secret, "2", &kept])?;
    assert_eq!(fresh, serde_json::json!({"200": 2}));
    // Without the file nothing proves what came before: nothing signed before is let in, and nobody blamed.
    edged.kill9()?;
    fs::remove_file(lab.dir().join("nonces"))?;
    edged.start_again()?;
    let sent = python(&lab, &edged, "replay", &[&kept])?;
    assert_eq!(sent, serde_json::json!({"503": REQUESTS + 2}));
    assert_eq!(edged.metrics()?.requests(Reason::NoncesFull), (REQUESTS + 2) as f64);
    assert_eq!(Reason::NoncesFull.blame(), Blame::Edge);
    assert_eq!(origin.seen(), REQUESTS + 2);
    Ok(())
}

#[test]
fn a_full_memory_lets_nothing_in() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = signing(&lab, &[("signing.nonces_max", "640")])?;
    let signer = Signer::derived(&lab, &edged)?;
    let (secret, kept) = (signer.secret()?, text(&lab.dir().join("requests.jsonl")));
    let sent = python(&lab, &edged, "send", &[&signer.id, &secret, "1500", &kept])?;
    let of = |status: &str| sent[status].as_u64().unwrap_or_default();
    assert_eq!(of("200") + of("503"), 1500, "{sent}");
    assert!((640 / 2..=1088).contains(&of("200")), "{sent}");
    assert_eq!(origin.seen(), of("200"));
    assert_eq!(edged.metrics()?.requests(Reason::NoncesFull), of("503") as f64);
    let held_against = [("reason", "nonces_full")];
    assert_eq!(edged.metrics()?.sum("edged_signals_total", &held_against), 0.0, "our own fault");
    let replayed = python(&lab, &edged, "replay", &[&kept])?;
    assert_eq!(replayed["401"].as_u64(), Some(of("200")), "{replayed}");
    assert_eq!(replayed["200"], Value::Null, "{replayed}");
    // Whoever else comes finds as much room as the one has taken.
    let (other, own) = (Signer::derived(&lab, &edged)?, text(&lab.dir().join("others.jsonl")));
    let sent = python(&lab, &edged, "send", &[&other.id, &other.secret()?, "100", &own])?;
    assert_eq!(sent, serde_json::json!({"200": 100}));
    Ok(())
}

#[test]
fn a_body_alone_is_taken_only_where_that_is_asked_for() -> Result<()> {
    let lab = Lab::new()?;
    let origin = Origin::start(&lab)?;
    let edged = signing(&lab, &[("signing.v0_body_max", "\"1KiB\"")])?;
    let signer = Signer::derived(&lab, &edged)?;
    let post = |body: &str, spelt: &str| -> Result<String> {
        let script = format!(
            "mac=$(printf %s '{body}' | openssl dgst -sha256 -mac HMAC -macopt hexkey:{} -r | cut -d' ' -f1); \
             curl -H 'X-API-Key: {}' -H \"X-Timestamp: $(date +%s)\" -H \"X-Signature: {spelt}$mac\" \
             --data-raw '{body}' https://edge.test/upload {}",
            signer.secret()?.trim(),
            signer.id,
            reaching(&edged)
        );
        shell(&lab, &script)
    };
    assert_eq!(post("hello", "")?, "401", "off unless it is asked for");
    edged.edit("signing.schemes", "[\"v0\"]")?;
    edged.tell("reload")?;
    assert_eq!(post("hello", "")?, "200");
    assert_eq!(post("hello", "v0=")?, "401", "the same body once more");
    assert_eq!(post("hello!", "v0=")?, "200");
    assert_eq!(post(&"x".repeat(1025), "")?, "413");
    let get = signer.headers(&["--url", "https://edge.test/"])?;
    assert_eq!(send(&edged, "GET", "/", &get, None)?, 401, "v1 is not taken now");
    assert_eq!(origin.completed(), 2);
    Ok(())
}

#[test]
fn a_signed_request_may_change_the_protocol() -> Result<()> {
    let lab = Lab::new()?;
    let listener = lab.origin.enter(|| TcpListener::bind((ORIGIN, 8080)))?;
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut lines = BufReader::new(client.try_clone()?).lines();
            while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
            client.write_all(
                b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
            )?;
            let said = lines.next().transpose()?.unwrap_or_default();
            client.write_all(format!("{said}!").as_bytes())?;
        }
        std::io::Result::Ok(())
    });
    let changes =
        [("route.1.upgrades", "[\"x\"]"), ("signing.schemes", "[\"v1\", \"rfc9421\", \"v0\"]")];
    let edged = signing(&lab, &changes)?;
    let signer = Signer::derived(&lab, &edged)?;
    // Of nothing, as the oldest form has it.
    let mac = format!(
        "printf '' | openssl dgst -sha256 -mac HMAC -macopt hexkey:{} -r | cut -d' ' -f1; date +%s",
        signer.secret()?.trim()
    );
    let mac = shell(&lab, &mac)?;
    let (mac, now) = mac.trim().split_once('\n').context("two lines")?;
    let pairs = [("X-API-Key", &*signer.id), ("X-Timestamp", now), ("X-Signature", mac)];
    let of_body = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let url = ["--url", "https://edge.test/x"];
    for headers in [
        signer.headers(&url)?,
        signer.headers(&[&url[..], &["--scheme", "rfc9421"]].concat())?,
        of_body.to_vec(),
    ] {
        let mut talk = Dial::new(&edged.ca, "edge.test")?.alpn("http/1.1").connect(&lab, CLIENT)?;
        let signed: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        let head = "GET /x HTTP/1.1\r\nHost: edge.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n";
        talk.say(format!("{head}{signed}\r\n").as_bytes())?;
        let heard = talk.hear(Duration::from_secs(5), |bytes| bytes.ends_with(b"\r\n\r\n"))?;
        assert!(heard.bytes.starts_with(b"HTTP/1.1 101 "), "{heard:?} {headers:?} {}", edged.log());
        talk.say(b"hello\n")?;
        let heard = talk.hear(Duration::from_secs(5), |bytes| bytes.ends_with(b"hello!"))?;
        assert_eq!(heard.bytes, b"hello!");
    }
    Ok(())
}

#[test]
fn masters_are_changed_without_a_restart_and_keys_outlive_them() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    let edged = signing(&lab, &[])?;
    let old = Signer::derived(&lab, &edged)?;
    let ask = |signer: &Signer| -> Result<u16> {
        let headers = signer.headers(&["--url", "https://edge.test/"])?;
        send(&edged, "GET", "/", &headers, None)
    };
    assert_eq!(ask(&old)?, 200);
    let place = |name: &str| format!("\"file:{}\"", lab.dir().join(name).display());
    write_private(&lab.dir().join("second"), &"s".repeat(32))?;
    edged.edit("signing.master", &place("second"))?;
    edged.edit("signing.former_masters", &format!("[{}]", place("signing")))?;
    edged.tell("reload")?;
    let new = Signer::derived(&lab, &edged)?;
    assert_eq!((ask(&old)?, ask(&new)?), (200, 200));
    edged.edit("signing.former_masters", "[]")?;
    edged.tell("reload")?;
    assert_eq!((ask(&old)?, ask(&new)?), (401, 200));
    // A changed file is read by itself; a wrong one refuses, and derives nothing else.
    write_private(&lab.dir().join("second"), &"t".repeat(32))?;
    until("the other master is read", Duration::from_secs(30), || Ok(ask(&new)? == 401))?;
    // Nothing secret is in what the daemon keeps or tells.
    for signer in [&old, &new] {
        let secret = signer.secret()?;
        for file in ["state/edged.redb", "events.jsonl", "edged.log", "nonces"] {
            let bytes = fs::read(lab.dir().join(file))?;
            let raw = (0..32).map(|i| u8::from_str_radix(&secret[2 * i..2 * i + 2], 16));
            let raw: Vec<u8> = raw.collect::<Result<_, _>>()?;
            for secret in [secret.as_bytes(), &raw] {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{file}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_verdict_by_hand_holds_for_a_key_that_signs() -> Result<()> {
    let lab = Lab::new()?;
    let _origin = Origin::start(&lab)?;
    // Who is allowed bears no verdict.
    let edged = signing(&lab, &[("lists.allow", "[]")])?;
    let signer = Signer::derived(&lab, &edged)?;
    let ask = || {
        let more = ["--url", "https://edge.test/v1/orders"];
        send(&edged, "GET", "/v1/orders", &signer.headers(&more)?, None)
    };
    assert_eq!(ask()?, 200);
    edged.tell(&format!("ban add key:{} --step 403", signer.id))?;
    assert_eq!(ask()?, 403);
    edged.tell(&format!("ban remove key:{}", signer.id))?;
    assert_eq!(ask()?, 200);
    Ok(())
}
