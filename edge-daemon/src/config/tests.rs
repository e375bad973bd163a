//! Contracts of the configuration: what is refused, where, and with which words.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::{Mistakes, Settings, Warnings, load, parse};

const ANNOTATED: &str = include_str!("../../../config/edged.toml");
const MINIMAL: &str = include_str!("../../../config/minimal.toml");

fn read(text: &str) -> Result<(Settings, Warnings), Mistakes> {
    parse(Path::new("edged.toml"), text)
}

/// The minimal file with one piece of text replaced by another.
fn with(old: &str, new: &str) -> String {
    assert!(MINIMAL.contains(old), "{old}");
    MINIMAL.replacen(old, new, 1)
}

/// The minimal file with a section added at its end, which is line 21.
fn plus(section: &str) -> String {
    format!("{MINIMAL}{section}\n")
}

#[test]
fn the_shipped_files_are_right() {
    for text in [ANNOTATED, MINIMAL] {
        let (_, warnings) = read(text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert_eq!(warnings.to_string(), "");
    }
}

#[test]
fn every_default_is_the_one_that_is_annotated() {
    let (annotated, _) = read(ANNOTATED).unwrap();
    let (minimal, _) = read(MINIMAL).unwrap();
    let last = annotated.routes.last().cloned();
    assert_eq!(minimal.routes.last(), last.as_ref());
    assert_eq!(minimal, Settings { routes: minimal.routes.clone(), ..annotated });
}

#[test]
fn the_annotated_file_shows_every_key() {
    // Were a key missing there, nobody would ever learn of it.
    let asked = include_str!("sections.rs").lines().chain(include_str!("route.rs").lines());
    let keys = asked.filter_map(|line| {
        let call = line.split(['(']).find(|part| part.starts_with('"'))?;
        call.split('"').nth(1).filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    });
    let mut count = 0;
    for key in keys.filter(|key| key.len() > 3) {
        count += 1;
        assert!(ANNOTATED.contains(key), "{key}");
    }
    assert!(count > 40, "{count}");
}

#[test]
fn mistakes_are_told_with_their_place() {
    // What is replaced by what; the line and column of the mistake; a piece of its words and one
    // of the help.
    let table = [
        // Syntax.
        ("[kernel]", "[kernel", 2, 8, "unclosed table", "]"),
        ("\"eth0\"]", "\"eth0\"", 5, 1, "missing comma", ","),
        ("name = \"api\"", "name = api", 13, 8, "string values must be quoted", "literal"),
        ("name = \"api\"", "name \"api\"", 13, 6, "", ""),
        ("name = \"api\"", "name = \"api\"\nname = \"b\"", 14, 1, "duplicate key", ""),
        // Unknown keys and sections.
        (
            "interfaces",
            "interface",
            3,
            1,
            "unknown key 'interface' in [kernel]",
            "did you mean 'interfaces'?",
        ),
        ("[server]", "[sever]", 5, 2, "unknown key 'sever'", "did you mean 'server'?"),
        ("servers", "zzz", 14, 1, "unknown key 'zzz' in [[upstream]]", "one of: connect_timeout"),
        ("auth = ", "Auth = ", 19, 1, "unknown key 'Auth' in [[route]]", "did you mean 'auth'?"),
        // Missing keys.
        (
            "interfaces = [\"eth0\"]",
            "",
            2,
            1,
            "missing key 'interfaces' in [kernel]",
            "required: interfaces",
        ),
        ("https = [\"0.0.0.0:443\"]", "", 5, 1, "missing key 'https' in [server]", "required"),
        ("key = \"/etc", "kez = \"/etc", 8, 1, "missing key 'key' in [tls]", "/etc/edged"),
        ("[tls]\n", "", 1, 1, "missing key 'certificate' in [tls]", "required"),
        ("name = \"api\"", "", 12, 1, "missing key 'name' in [[upstream]]", "required"),
        ("servers = [\"127.0.0.1:8080\"]", "", 12, 1, "missing key 'servers'", "required"),
        ("path = \"/\"", "", 16, 1, "missing key 'path' in [[route]]", "required"),
        ("auth = \"key\"", "", 16, 1, "missing key 'auth' in [[route]]", "would refuse all"),
        ("upstream = \"api\"", "", 16, 1, "missing key 'upstream' in [[route]]", "required"),
        // Kinds.
        ("[\"eth0\"]", "\"eth0\"", 3, 14, "'interfaces' is a string", "an array of interfaces"),
        ("[\"eth0\"]", "[7]", 3, 15, "'interfaces' is a number", "a string"),
        ("[[upstream]]", "[upstream]", 12, 1, "'upstream' is a table", "[[upstream]]"),
        ("[[route]]", "[route]", 16, 1, "'route' is a table", "[[route]]"),
        ("[tls]", "[tls.x]", 8, 6, "unknown key 'x' in [tls]", "one of"),
        ("auth = \"key\"", "auth = true", 19, 8, "'auth' is true or false", "\"key\" or \"none\""),
        // Kernel.
        (
            "[\"eth0\"]",
            "[{ name = \"eth0\", attach = \"fast\" }]",
            3,
            41,
            "'attach' cannot be 'fast'",
            "one of",
        ),
        (
            "[\"eth0\"]",
            "[{ attach = \"native\" }]",
            3,
            15,
            "missing key 'name' in 'interfaces'",
            "required: name",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\", { name = \"eth0\", attach = \"native\" }]",
            3,
            14,
            "'interfaces' names one twice",
            "leave one out",
        ),
        ("[\"eth0\"]", "[]", 3, 14, "'interfaces' is empty", "[\"eth0\", "),
        ("[\"eth0\"]", "[\"eth0\", \"eth0\"]", 3, 23, "names this twice", "leave one out"),
        ("[\"eth0\"]", "[\"a/b\"]", 3, 15, "'interfaces' cannot be 'a/b'", "1 to 15"),
        ("[\"eth0\"]", "[\"an-interface-name\"]", 3, 15, "cannot be", "1 to 15"),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nattach = \"natve\"",
            4,
            10,
            "'attach' cannot be 'natve'",
            "did you mean 'native'?",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nipv6_prefix = 65",
            4,
            15,
            "'ipv6_prefix' is out of range",
            "1 to 64",
        ),
        ("[\"eth0\"]", "[\"eth0\"]\nipv6_prefix = -1", 4, 15, "out of range", "1 to 64"),
        ("[\"eth0\"]", "[\"eth0\"]\nipv6_prefix = 0x100", 4, 15, "out of range", "1 to 64"),
        ("[\"eth0\"]", "[\"eth0\"]\npacket_rate = \"10\"", 4, 15, "not a rate: '10'", "600/m"),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\npacket_rate = \"10/w\"",
            4,
            15,
            "not a rate",
            "per s, m, h or d",
        ),
        ("[\"eth0\"]", "[\"eth0\"]\npacket_rate = \"0/s\"", 4, 15, "not a rate", "\"off\""),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\npacket_rate = 10",
            4,
            15,
            "'packet_rate' is a number",
            "burst = 100",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\npacket_rate = { burst = 1 }",
            4,
            15,
            "missing key 'rate' in 'packet_rate'",
            "required",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\npacket_rate = { rate = \"1/s\", bust = 1 }",
            4,
            31,
            "unknown key 'bust'",
            "did you mean 'burst'?",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\npacket_rate = { rate = \"1/s\", burst = 0 }",
            4,
            39,
            "'burst' is out of range",
            "1 to",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\npacket_rate = { rate = \"1/d\", burst = 50 }",
            4,
            24,
            "not a rate",
            "12 days",
        ),
        ("[\"eth0\"]", "[\"eth0\"]\ndebug = \"yes\"", 4, 9, "'debug' is a string", "true or false"),
        ("[\"eth0\"]", "[\"eth0\"]\npin_dir = \"\"", 4, 11, "'pin_dir' is empty", "a path"),
        // Server.
        ("[\"0.0.0.0:443\"]", "[]", 6, 9, "'https' is empty", "0.0.0.0:443"),
        (
            "\"0.0.0.0:443\"",
            "\"0.0.0.0\"",
            6,
            10,
            "not an address with a port: '0.0.0.0'",
            "the port is missing",
        ),
        ("\"0.0.0.0:443\"", "\":443\"", 6, 10, "not an address", "name the address"),
        ("\"0.0.0.0:443\"", "\"0.0.0.0:99999\"", 6, 10, "not an address", "0 to 65535"),
        ("\"0.0.0.0:443\"", "\"2001:db8::1:443\"", 6, 10, "not an address", "in brackets"),
        ("\"0.0.0.0:443\"", "\"::1\"", 6, 10, "not an address", ""),
        ("\"0.0.0.0:443\"", "\"0.0.0.0:443\", \"0.0.0.0:443\"", 6, 25, "names this twice", "leave"),
        (
            "\"0.0.0.0:443\"]",
            "\"0.0.0.0:443\"]\nhttp = [\"192.0.2.1:443\"]",
            7,
            9,
            "two listeners on one address",
            "'https' listens on 0.0.0.0:443 already",
        ),
        (
            "\"0.0.0.0:443\"]",
            "\"0.0.0.0:443\"]\nworkers = 1.5",
            7,
            11,
            "'workers' is a fraction",
            "a whole number",
        ),
        (
            "\"0.0.0.0:443\"]",
            "\"0.0.0.0:443\"]\ndrain_timeout = 10",
            7,
            17,
            "'drain_timeout' is a number",
            "\"10s\"",
        ),
        (
            "\"0.0.0.0:443\"]",
            "\"0.0.0.0:443\"]\ndrain_timeout = \"10\"",
            7,
            17,
            "not a duration: '10'",
            "ms, s, m, h or d",
        ),
        (
            "\"0.0.0.0:443\"]",
            "\"0.0.0.0:443\"]\ndrain_timeout = \"0s\"",
            7,
            17,
            "out of range: 0s",
            "1ms to 1h",
        ),
        // Upstreams.
        (
            "127.0.0.1:8080",
            "localhost:8080",
            14,
            12,
            "not an address",
            "host names are not looked up",
        ),
        (
            "127.0.0.1:8080",
            "0.0.0.0:8080",
            14,
            12,
            "nothing answers at 0.0.0.0:8080",
            "own address",
        ),
        ("127.0.0.1:8080", "127.0.0.1:0", 14, 12, "nothing answers", "port"),
        (
            "\"api\"\nservers",
            "\"a b\"\nservers",
            13,
            8,
            "'name' cannot be 'a b'",
            "letters, digits",
        ),
        // Routes.
        (
            "path = \"/\"",
            "path = \"v1\"",
            17,
            8,
            "'path' cannot be 'v1'",
            "start it with a slash: \"/v1\"",
        ),
        ("path = \"/\"", "path = \"/v1/\"", 17, 8, "'path' cannot be", "write \"/v1\""),
        ("path = \"/\"", "path = \"//\"", 17, 8, "'path' cannot be", "write \"/\""),
        ("path = \"/\"", "path = \"/a/../b\"", 17, 8, "'path' cannot be", "'..'"),
        ("path = \"/\"", "path = \"/a?b\"", 17, 8, "'path' cannot be", "without query"),
        (
            "path = \"/\"",
            "path = \"/\"\nhost = \"*.example.com\"",
            18,
            8,
            "'host' cannot be",
            "an exact host name",
        ),
        (
            "path = \"/\"",
            "path = \"/\"\nhost = \"example.com:443\"",
            18,
            8,
            "'host' cannot be",
            "without a port",
        ),
        ("path = \"/\"", "path = \"/\"\nhost = \"\"", 18, 8, "'host' cannot be ''", "a host name"),
        ("\"HEAD\"", "\"head\"", 18, 19, "not a method: 'head'", "upper case: \"HEAD\""),
        ("\"HEAD\"", "\"G T\"", 18, 19, "not a method: 'G T'", "did you mean 'GET'?"),
        ("\"HEAD\"", "\"GET\"", 18, 19, "names this twice", "leave one out"),
        ("\"HEAD\"", "\"CONNECT\"", 18, 19, "never passed on", "leave it out"),
        (
            "auth = \"key\"",
            "auth = \"keys\"",
            19,
            8,
            "'auth' cannot be 'keys'",
            "did you mean 'key'?",
        ),
        (
            "auth = \"key\"",
            "auth = \"none\"\nscopes = [\"a\"]",
            20,
            10,
            "scopes without a key",
            "set auth",
        ),
        (
            "auth = \"key\"",
            "auth = \"key\"\nscopes = [\"a b\"]",
            20,
            11,
            "'scopes' cannot be 'a b'",
            "letters",
        ),
        (
            "upstream = \"api\"",
            "upstream = \"ap\"",
            20,
            12,
            "no upstream is called 'ap'",
            "did you mean 'api'?",
        ),
    ];
    let differing: Vec<_> = table
        .into_iter()
        .filter_map(|(old, new, line, column, what, help)| {
            differs(&with(old, new), line, column, what, help)
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{}",
        differing.join(
            "
"
        )
    );
}

#[test]
fn mistakes_in_added_sections_are_told_with_their_place() {
    let table = [
        (
            "[lists]\nallow = [\"0.0.0.0/0\"]",
            22,
            10,
            "allows every address",
            "nothing would be protected",
        ),
        ("[lists]\nallow = [\"::/0\"]", 22, 10, "not a network: '::/0'", "it contains all of IPv4"),
        (
            "[lists]\ndeny = [\"10.0.0.0/33\"]",
            22,
            9,
            "not a network: '10.0.0.0/33'",
            "192.0.2.0/24",
        ),
        ("[lists]\ndeny = [\"10.0.0.1\", \"eth0\"]", 22, 21, "not a network: 'eth0'", "address"),
        ("[lists]\ndeny = \"10.0.0.1\"", 22, 8, "'deny' is a string", "an array of networks"),
        ("[lists]\ndeny_files = [7]", 22, 15, "'deny_files' is a number", "a path"),
        ("[bounds]\nconnections_max = 0", 22, 19, "out of range", "1 to 10000000"),
        ("[bounds]\nuri_bytes_max = \"8KB\"", 22, 17, "not a size: '8KB'", "KiB"),
        ("[bounds]\nuri_bytes_max = \"1MiB\"", 22, 17, "out of range: 1MiB", "64B to 64KiB"),
        ("[bounds]\nuri_bytes_max = 8192", 22, 17, "'uri_bytes_max' is a number", "a size"),
        ("[bounds]\nidle_timeout = \"2h\"", 22, 16, "out of range: 2h", "1ms to 1h"),
        (
            "[limits]\nper_sorce = \"1/s\"",
            22,
            1,
            "unknown key 'per_sorce' in [limits]",
            "did you mean 'per_source'?",
        ),
        ("[keys]\nprefix = \"My-Key\"", 22, 10, "'prefix' cannot be 'My-Key'", "lower-case"),
        ("[keys]\nexpires = \"soon\"", 22, 11, "not a duration: 'soon'", "d: \"10s\""),
        ("[keys]\nurl_parameters = [\"a=b\"]", 22, 19, "'url_parameters' cannot be", "visible"),
        (
            "[[upstream]]\nname = \"api\"\nservers = [\"127.0.0.1:81\"]",
            22,
            8,
            "two upstreams are called 'api'",
            "rename",
        ),
        (
            "[[route]]\npath = \"/\"\nmethods = [\"GET\"]\nauth = \"none\"\nupstream = \"api\"",
            22,
            8,
            "route 2 is the same as route 1",
            "one route serves / of host *",
        ),
        ("[abuse]\nthreshold = 0", 22, 13, "out of range", "1 to 1000000"),
        ("[abuse]\nban_first = \"48h\"", 22, 13, "the first ban is longer", "'ban_max' is 1d"),
        ("[abuse]\nban_max = \"1m\"", 22, 11, "the first ban is longer", "'ban_max' is 1m"),
        ("[abuse]\nban_factor = 0", 22, 14, "out of range", "1 to 1000"),
        ("[abuse]\nhalf_life = \"0s\"", 22, 13, "out of range", "1ms"),
        (
            "[abuse.scores]\nno_rote = 1",
            22,
            1,
            "unknown key 'no_rote' in [abuse.scores]",
            "did you mean 'no_route'?",
        ),
        ("[abuse.scores]\nno_route = -1", 22, 12, "out of range", "0 to"),
        ("[control]\nsocket = 1", 22, 10, "'socket' is a number", "a path"),
        ("[metrics]\nlisten = \"9464\"", 22, 10, "not an address", "the port is missing"),
        (
            "[metrics]\nlisten = \"127.0.0.1:443\"",
            22,
            10,
            "two listeners",
            "'https' listens on 0.0.0.0:443",
        ),
        ("[log]\nlevel = \"inf\"", 22, 9, "'level' cannot be 'inf'", "did you mean 'info'?"),
        ("[log]\nevents = \"stout\"", 22, 10, "'events' cannot be 'stout'", "a path with a '/'"),
    ];
    let differing: Vec<_> = table
        .into_iter()
        .filter_map(|(section, line, column, what, help)| {
            differs(&plus(section), line, column, what, help)
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{}",
        differing.join(
            "
"
        )
    );
}

#[track_caller]
fn expect(text: &str, line: usize, column: usize, what: &str, help: &str) {
    assert_eq!(differs(text, line, column, what, help), None);
}

/// What was told instead of a mistake at this place, with these words.
fn differs(text: &str, line: usize, column: usize, what: &str, help: &str) -> Option<String> {
    let wanted = format!("{line}:{column}: {what}: {help}");
    let Err(Mistakes(mistakes)) = read(text) else { return Some(format!("{wanted}\naccepted")) };
    let found = mistakes.iter().any(|m| {
        (m.line, m.column) == (line, column) && m.what.contains(what) && m.help.contains(help)
    });
    (!found).then(|| format!("{wanted}\n{}", Mistakes(mistakes)))
}

#[test]
fn all_mistakes_are_told_at_once_and_in_order() {
    let text = with("interfaces", "interface")
        .replace("127.0.0.1:8080", "localhost")
        .replace("\"HEAD\"", "\"Head\"")
        + "[abuse]\nthreshold = 0\nban_max = \"1\"\n";
    let Err(Mistakes(mistakes)) = read(&text) else { panic!("accepted") };
    let lines: Vec<_> = mistakes.iter().map(|m| m.line).collect();
    assert_eq!(lines, [2, 3, 14, 18, 22, 23], "{}", Mistakes(mistakes));
}

#[test]
fn one_torn_line_hides_no_other_mistake_and_invents_none() {
    let text = with("interfaces = [\"eth0\"]", "interfaces == [\"eth0\"]")
        .replace("auth = \"key\"", "auth = \"kee\"");
    let Err(Mistakes(mistakes)) = read(&text) else { panic!("accepted") };
    assert!(mistakes.iter().any(|m| m.line == 19 && m.what.contains("'kee'")));
    assert!(mistakes.iter().all(|m| [3, 19].contains(&m.line)), "{}", Mistakes(mistakes));
}

#[test]
fn a_denied_upstream_is_a_mistake_unless_it_is_allowed() {
    let text = plus("[lists]\ndeny = [\"192.0.2.0/24\", \"10.0.0.0/8\"]")
        .replace("127.0.0.1:8080", "10.1.2.3:80");
    expect(&text, 22, 25, "10.0.0.0/8 denies the upstream 'api' at 10.1.2.3", "'allow'");
    assert!(read(&format!("{text}allow = [\"10.1.2.3\"]\n")).is_ok());
    // Loopback never passes a real interface, and public feeds name it.
    let loopback = plus("[lists]\ndeny = [\"127.0.0.0/8\"]");
    assert!(read(&loopback).is_ok());
    expect(&loopback.replace("\"eth0\"", "\"lo\""), 22, 9, "denies the upstream", "allow");
}

#[test]
fn doubts_are_told_but_do_not_refuse() {
    let text = plus("[metrics]\nlisten = \"0.0.0.0:9464\"\n[lists]\ndeny = [\"192.0.2.7/24\"]")
        .replace("\"HEAD\"", "\"PURGE\"");
    let (settings, Warnings(warnings)) = read(&text).unwrap();
    assert_eq!(settings.lists.deny.nets, ["192.0.2.0/24".parse().unwrap()]);
    let places: Vec<_> = warnings.iter().map(|w| (w.line, w.column)).collect();
    assert_eq!(places, [(18, 19), (22, 10), (24, 9)], "{}", Warnings(warnings));
}

/// A folder with a configuration whose certificate, key and lists are there.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    put("cert.pem", "certificate");
    put("key.pem", "key");
    put("allow.txt", "\u{feff}# friends\n192.0.2.1 since May\r\n\n2001:db8::/32; office\n");
    put("deny.txt", "198.51.100.0/24\r\n203.0.113.9/24\n");
    fs::set_permissions(folder.path().join("key.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    let lists = "[lists]\nallow_files = [\"allow.txt\"]\ndeny_files = [\"deny.txt\"]";
    put("edged.toml", &plus(lists).replace("/etc/edged/tls/", ""));
    folder
}

fn mistakes_of(folder: &tempfile::TempDir) -> String {
    load(&folder.path().join("edged.toml")).unwrap_err().to_string()
}

#[test]
fn files_are_found_beside_the_configuration() {
    let folder = folder();
    let (settings, warnings) = load(&folder.path().join("edged.toml")).unwrap();
    assert_eq!(settings.tls.key, folder.path().join("key.pem"));
    let allowed: Vec<_> = settings.lists.allow.iter().map(|(net, _)| net.to_string()).collect();
    assert_eq!(allowed, ["192.0.2.1/32", "2001:db8::/32"]);
    assert_eq!(settings.lists.deny.iter().count(), 2);
    let told = warnings.to_string();
    assert!(told.contains("deny.txt:2:1") && told.contains("read as 203.0.113.0/24"), "{told}");
}

#[test]
fn missing_and_public_files_are_mistakes() {
    let folder = folder();
    fs::set_permissions(folder.path().join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::remove_file(folder.path().join("cert.pem")).unwrap();
    fs::remove_file(folder.path().join("deny.txt")).unwrap();
    let told = mistakes_of(&folder);
    for piece in [
        "edged.toml:9:15",
        "edged.toml:10:7",
        "everyone can read the private key",
        "edged.toml:23:15",
    ] {
        assert!(told.contains(piece), "{piece} in\n{told}");
    }
    assert!(told.ends_with("3 mistakes"), "{told}");
}

#[test]
fn a_bad_line_refuses_an_allow_file_and_warns_of_a_deny_file() {
    let folder = folder();
    fs::write(folder.path().join("deny.txt"), "what?\n198.51.100.1\n").unwrap();
    let (settings, warnings) = load(&folder.path().join("edged.toml")).unwrap();
    assert_eq!(settings.lists.deny.iter().count(), 1);
    assert!(warnings.to_string().contains("deny.txt:1:1"), "{warnings}");

    fs::write(folder.path().join("allow.txt"), "192.0.2.1\n  192.0.2.300\n0.0.0.0/0\n").unwrap();
    let told = mistakes_of(&folder);
    assert!(told.contains("allow.txt:2:3") && told.contains("allow.txt:3:1"), "{told}");
    assert!(told.ends_with("2 mistakes"), "{told}");
}

#[test]
fn a_file_full_of_garbage_is_not_told_line_by_line() {
    let folder = folder();
    fs::write(folder.path().join("deny.txt"), "garbage\n".repeat(100_000)).unwrap();
    let (_, Warnings(warnings)) = load(&folder.path().join("edged.toml")).unwrap();
    assert_eq!(warnings.len(), 21);
}

#[test]
fn a_deny_file_that_names_the_upstream_is_a_mistake() {
    let folder = folder();
    let path = folder.path().join("edged.toml");
    let text = fs::read_to_string(&path).unwrap().replace("127.0.0.1:8080", "203.0.113.7:80");
    fs::write(&path, text).unwrap();
    let told = mistakes_of(&folder);
    assert!(told.contains("edged.toml:23:14") && told.contains("deny.txt) denies"), "{told}");
}

#[test]
fn a_missing_configuration_is_told_without_a_line() {
    let told = load(Path::new("/nowhere/edged.toml")).unwrap_err().to_string();
    assert!(told.contains("/nowhere/edged.toml") && told.contains("--config"), "{told}");
}

proptest::proptest! {
    /// Whatever the file holds, reading ends, with every place inside the file.
    #[test]
    fn no_file_breaks_the_reader(at in 0..ANNOTATED.len(), cut in 0..40_usize, new in "[\\[\\]{}=\"#a0\n.,é-]{0,6}") {
        let mut text = ANNOTATED.to_owned();
        text.replace_range(at..(at + cut).min(ANNOTATED.len()), &new);
        if let Err(Mistakes(mistakes)) = read(&text) {
            for mistake in mistakes {
                assert!(mistake.line <= text.lines().count() + 1 && mistake.column > 0);
                drop(mistake.to_string());
            }
        }
    }
}
