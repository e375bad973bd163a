//! Contracts of the configuration: what is refused, where, and with which words.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use edge_common::{
    Rate,
    Reason::{Ban, DenyList, MalformedPacket, NoService, SynCookie},
    Signature,
    signature::{Action, Ask},
};

use super::{Mistakes, Settings, Warnings, load, parse};
use super::{
    settings::{Events, Offer},
    signature::action,
};

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
    let asked = [
        include_str!("access.rs"),
        include_str!("certificate.rs"),
        include_str!("identity.rs"),
        include_str!("answers.rs"),
        include_str!("issuer.rs"),
        include_str!("kernel.rs"),
        include_str!("limit.rs"),
        include_str!("policy.rs"),
        include_str!("route.rs"),
        include_str!("sections.rs"),
        include_str!("signature.rs"),
        include_str!("signing.rs"),
        include_str!("upstream.rs"),
        include_str!("tls.rs"),
    ];
    let keys = asked.iter().flat_map(|file| file.lines()).filter_map(|line| {
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

/// The annotated file with its examples in force.
fn exemplary() -> String {
    ANNOTATED.lines().fold(String::new(), |text, line| {
        let is_example = line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
        text + if is_example { &line[1..] } else { line } + "\n"
    })
}

#[test]
fn the_examples_are_right() {
    let (settings, warnings) = read(&exemplary()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(warnings.to_string(), "");
    let offers: Vec<_> = settings.kernel.services.unwrap().iter().map(Offer::to_string).collect();
    assert_eq!(offers, ["tcp/22", "udp/8000-8010", "ping", "proto/47"]);
    let [dns, syn, hello] = &settings.kernel.signatures[..] else { panic!("three") };
    let wanted = Signature {
        protocol: 17,
        source_ports: [53, 53],
        ports: [1024, 65_535],
        length: [512, 65_535],
        ttl: [1, 255],
        asks: Ask::PROTOCOL | Ask::TRANSPORT | Ask::WHOLE | Ask::MONITOR,
        action: Action::DROP,
        ..Signature::ANY
    };
    assert_eq!((dns.name.as_str(), dns.rule), ("dns-amplification", wanted));
    let told = "udp from 53 to 1024-65535, length 512-65535, ttl 1-255, no fragments";
    assert_eq!((dns.to_string(), action(&dns.rule)), (told.into(), "drop".into()));
    let wanted = Signature {
        rate: Rate::new(1_000, 1_000_000_000, 2_000).unwrap(),
        protocol: 6,
        tcp_mask: 0x12,
        tcp_flags: 0x02,
        asks: Ask::PROTOCOL | Ask::TRANSPORT,
        action: Action::LIMIT,
        ..Signature::ANY
    };
    assert_eq!(syn.rule, wanted);
    let limit = "limit all to 1000/s, burst 2000";
    assert_eq!((syn.to_string(), action(&syn.rule)), ("tcp, flags syn,!ack".into(), limit.into()));
    let wanted = Signature {
        protocol: 6,
        payload: [0x16, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        payload_bytes: 2,
        asks: Ask::PROTOCOL | Ask::TRANSPORT,
        ..Signature::ANY
    };
    assert_eq!(hello.rule, wanted);
    let told = "tcp, payload hex:16 03";
    assert_eq!((hello.to_string(), action(&hello.rule)), (told.into(), "count".into()));
}

#[test]
fn the_packet_policy_is_read_as_written() {
    let kernel = |lines: &str| {
        let (settings, _) = read(&with("[\"eth0\"]", &format!("[\"eth0\"]\n{lines}")))
            .unwrap_or_else(|mistakes| panic!("{lines}: {mistakes}"));
        settings.kernel
    };
    let prefixes = |lines| kernel(lines).prefix_limits.iter().map(|p| p.prefix).collect::<Vec<_>>();
    assert_eq!(prefixes(""), [56, 48]);
    assert_eq!(prefixes("ipv6_prefix = 56"), [48]);
    assert_eq!(prefixes("ipv6_prefix = 32"), [0; 0]);
    assert_eq!(prefixes("prefix_limits = [{ prefix = 32, factor = 2 }]"), [32]);
    assert_eq!(prefixes("prefix_limits = []"), [0; 0]);
    assert_eq!(kernel("monitor = false").monitor, []);
    assert_eq!(kernel("monitor = [\"ban\", \"no_service\"]").monitor, [Ban, NoService]);
    let all = kernel("monitor = true").monitor;
    assert!(all.contains(&DenyList) && all.contains(&MalformedPacket) && !all.contains(&SynCookie));
    let bytes = kernel("byte_rate = \"1MiB/s\"").byte_rate;
    assert_eq!(bytes, Rate::of_bytes(1 << 20, 1_000_000_000, 1 << 20).unwrap());
    assert_eq!(kernel("[kernel.services]\ninbound = []").services, Some(Vec::new()));
}

/// Each stands alone in the second of two lines below `[kernel]`, or in a section of its own.
#[test]
fn mistakes_in_the_packet_policy_are_told_with_their_place() {
    let keys = [
        ("byte_rate = 10", 13, "'byte_rate' is a number", "\"10MiB/s\""),
        ("byte_rate = \"10/s\"", 13, "not a rate of bytes: '10/s'", "B, KiB"),
        ("byte_rate = \"10MiB\"", 13, "not a rate of bytes", "a size per s"),
        ("byte_rate = \"1KiB/s\"", 13, "not a rate of bytes", "a burst of 128KiB at least"),
        ("byte_rate = { rate = \"1MiB/s\", burst = \"1KiB\" }", 40, "out of range: 1KiB", "128KiB"),
        ("udp_rate = \"1MiB/s\"", 12, "not a rate", "at least 1"),
        ("prefix_limits = [48]", 18, "'prefix_limits' is a number", "{ prefix = 56, factor = 4 }"),
        ("prefix_limits = [{ prefix = 64, factor = 2 }]", 29, "out of range", "1 to 63"),
        ("prefix_limits = [{ prefix = 48 }]", 18, "missing key 'factor'", "required"),
        ("prefix_limits = [{ prefix = 48, factor = 0 }]", 42, "out of range", "1 to"),
        (
            "prefix_limits = [{ prefix = 48, factor = 9 }, { prefix = 56, factor = 4 }]",
            47,
            "a /56 does not lie around a /48",
            "the narrower first",
        ),
        (
            "ipv6_prefix = 48\nprefix_limits = [{ prefix = 48, factor = 9 }]",
            18,
            "a /48 does not lie around a /48",
            "shorter than 'ipv6_prefix'",
        ),
        (
            "prefix_limits = [{ prefix = 60, factor = 1 }, { prefix = 56, factor = 1 }, { prefix = 48, factor = 1 }]",
            17,
            "'prefix_limits' names too many",
            "at most 2",
        ),
        ("fragments = \"dorp\"", 13, "'fragments' cannot be 'dorp'", "did you mean 'drop'?"),
        ("monitor = 1", 11, "'monitor' is a number", "true, false, or an array"),
        ("monitor = [\"packet\"]", 12, "no packet is refused for 'packet'", "'packet_rate'?"),
        ("monitor = [\"pass\"]", 12, "no packet is refused for 'pass'", ""),
        ("monitor = [\"no_route\"]", 12, "no packet is refused for 'no_route'", ""),
        ("monitor = [\"ban\", \"ban\"]", 19, "names this twice", "leave one out"),
        ("[kernel.services]", 1, "missing key 'inbound' in [kernel.services]", "tcp/22"),
        ("[kernel.services]\ninbound = \"ping\"", 11, "'inbound' is a string", "an array of"),
        ("[kernel.services]\ninbound = [\"ssh\"]", 12, "not a service: 'ssh'", "tcp/443"),
        ("[kernel.services]\ninbound = [\"tcp\"]", 12, "not a service: 'tcp'", "1 to 65535"),
        ("[kernel.services]\ninbound = [\"tcp/0\"]", 12, "not a service", "1 to 65535"),
        ("[kernel.services]\ninbound = [\"udp/9-8\"]", 12, "not a service", "udp/8000-8010"),
        ("[kernel.services]\ninbound = [\"tcp/65536\"]", 12, "not a service", "1 to 65535"),
        ("[kernel.services]\ninbound = [\"proto/256\"]", 12, "not a protocol: '256'", "0 to 255"),
        ("[kernel.services]\ninbound = [\"proto/6\"]", 12, "not a protocol", "name the ports"),
        ("[kernel.services]\ninbound = [\"proto/58\"]", 12, "not a protocol", "\"ping\""),
        ("[kernel.services]\noutbound = []", 1, "unknown key 'outbound'", "one of: inbound"),
    ];
    let rules = [
        ("action = \"drop\"\nttl = 1", 0, 1, "missing key 'name' in [[kernel.signature]]", "dns"),
        ("name = \"a b\"", 1, 8, "'name' cannot be 'a b'", "letters"),
        ("name = \"a\"\nttl = 1", 0, 1, "missing key 'action' in [[kernel.signature]]", "\"drop\""),
        ("name = \"a\"\naction = \"dorp\"", 2, 10, "'action' cannot be", "did you mean 'drop'?"),
        ("name = \"a\"\naction = \"drop\"", 0, 1, "drops every packet", "source_ports, ports"),
        ("ports = 53", 1, 9, "'ports' without its protocol", "\"tcp\" or \"udp\""),
        ("protocol = \"icmp\"\nports = 53", 2, 9, "'ports' without its protocol", "\"udp\""),
        ("protocol = \"udp\"\ntcp_flags = \"syn\"", 2, 13, "'tcp_flags' without", "\"tcp\""),
        ("protocol = 47\npayload = \"x\"", 2, 11, "'payload' without its protocol", "TCP, UDP"),
        ("protocol = \"upd\"\nports = 53", 1, 12, "'protocol' cannot be", "one of: tcp, udp"),
        ("protocol = 256", 1, 12, "'protocol' is out of range", "0 to 255"),
        ("protocol = \"udp\"\nports = \"9-8\"", 2, 9, "'ports' is empty: 9-8", "lower end first"),
        ("protocol = \"udp\"\nports = \"1-\"", 2, 9, "'ports' cannot be '1-'", "0 to 65535"),
        ("protocol = \"udp\"\nports = 65536", 2, 9, "'ports' is out of range", "0 to 65535"),
        ("length = \"0-65576\"", 1, 10, "'length' cannot be '0-65576'", "0 to 65575"),
        ("ttl = \"0-256\"", 1, 7, "'ttl' cannot be '0-256'", "0 to 255"),
        ("ttl = [1, 2]", 1, 7, "'ttl' is an array", "0 to 255"),
        ("protocol = 6\ntcp_flags = \"sny\"", 2, 13, "not a TCP flag: 'sny'", "one of: fin, syn"),
        ("protocol = 6\ntcp_flags = \"syn,!syn\"", 2, 13, "'syn' is there twice", "leave one out"),
        ("protocol = 6\ntcp_flags = \"\"", 2, 13, "not a TCP flag: ''", ""),
        ("fragment = \"yes\"", 1, 12, "'fragment' is a string", "true or false"),
        ("payload = \"\"", 1, 11, "'payload' has 0 bytes", "1 to 16"),
        ("payload = \"12345678901234567\"", 1, 11, "'payload' has 17 bytes", "1 to 16"),
        ("payload = \"hex:1\"", 1, 11, "not bytes: 'hex:1'", "pairs of hex digits"),
        ("payload = \"hex:zz\"", 1, 11, "not bytes: 'hex:zz'", "pairs of hex digits"),
        ("action = \"limit\"", 0, 1, "missing key 'rate' in [[kernel.signature]]", "100/s"),
        ("action = \"limit\"\nrate = \"off\"", 2, 8, "a limit that is off", "100/s"),
        (
            "action = \"limit\"\nrate = \"1/s\"\nper = \"al\"",
            3,
            7,
            "'per' cannot be",
            "did you mean 'all'?",
        ),
        ("action = \"drop\"\nrate = \"1/s\"", 2, 8, "'rate' without a limit", "\"limit\""),
        ("action = \"count\"\nper = \"all\"", 2, 7, "'per' without a limit", "\"limit\""),
        ("prots = 1", 1, 1, "unknown key 'prots' in [[kernel.signature]]", "did you mean 'ports'?"),
    ];
    let keys = keys.into_iter().filter_map(|(lines, column, what, help)| {
        let text = with("[\"eth0\"]", &format!("[\"eth0\"]\n{lines}"));
        differs(&text, 3 + lines.lines().count(), column, what, help)
    });
    let rules = rules.into_iter().filter_map(|(lines, line, column, what, help)| {
        let text = plus(&format!("[[kernel.signature]]\n{lines}"));
        differs(&text, 21 + line, column, what, help)
    });
    let differing: Vec<_> = keys.chain(rules).collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn signatures_are_told_apart_and_counted() {
    let rule = |name: &str, more: &str| {
        format!("[[kernel.signature]]\nname = \"{name}\"\naction = \"drop\"\n{more}\n")
    };
    let twice = rule("a", "ttl = 1") + &rule("a", "ttl = 2");
    expect(&plus(&twice), 26, 8, "two signatures are called 'a'", "rename");
    let nth = |n| rule(&format!("n{n}"), &format!("ttl = {n}"));
    let many = |count| (0..count).map(nth).collect::<String>();
    assert!(read(&plus(&many(64))).is_ok());
    expect(&plus(&many(66)), 21 + 4 * 64, 1, "more than 64 signatures", "each");
    let doubts = |upper: &str, lower: &str| {
        let (_, warnings) = read(&plus(&(rule("a", upper) + &rule("b", lower)))).unwrap();
        warnings.to_string()
    };
    let dns = "protocol = \"udp\"\nsource_ports = 53";
    for (upper, lower) in [
        (dns, dns),
        (dns, &*format!("{dns}\nlength = \"100-200\"")),
        ("ttl = \"1-5\"", "ttl = 3\nfragment = true"),
        ("payload = \"ab\"", "payload = \"abc\""),
        ("protocol = 6\ntcp_flags = \"syn\"", "protocol = 6\ntcp_flags = \"syn,!ack\""),
    ] {
        let told = doubts(upper, lower);
        assert!(told.contains("'b' never matches: 'a' drops all of it before"), "{upper}: {told}");
    }
    for (upper, lower) in [
        (&*format!("{dns}\nmonitor = true"), dns),
        (&*format!("{dns}\nfragment = false"), dns),
        ("ttl = \"1-5\"", "ttl = \"3-6\""),
        ("payload = \"abc\"", "payload = \"ab\""),
        ("protocol = 6\ntcp_flags = \"!syn\"", "protocol = 6\ntcp_flags = \"syn\""),
    ] {
        assert_eq!(doubts(upper, lower), "", "{upper}");
    }
}

#[test]
fn a_service_policy_without_ssh_or_metrics_is_doubtful() {
    let services = |inbound: &str, more: &str| {
        let text = plus(&format!("[kernel.services]\ninbound = [{inbound}]\n{more}"));
        let (_, Warnings(warnings)) = read(&text).unwrap();
        warnings.iter().map(|w| format!("{}: {}", w.line, w.what)).collect::<Vec<_>>()
    };
    assert_eq!(services("\"tcp/20-30\"", ""), [""; 0]);
    assert_eq!(services("\"udp/22\"", ""), ["21: SSH on \"tcp/22\" is not offered"]);
    let metrics = "[metrics]\nlisten = \"0.0.0.0:9464\"";
    let told = services("\"tcp/22\"", metrics);
    assert_eq!(told[0], "21: the metrics on \"tcp/9464\" are not offered");
    assert_eq!(services("\"tcp/22\", \"tcp/9464\"", metrics).len(), 1);
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
        ("servers", "zzz", 14, 1, "unknown key 'zzz' in [[upstream]]", "one of: age_max"),
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
            "local host:8080",
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
            "path = \"/\"\nhost = \"a.*.example.com\"",
            18,
            8,
            "'host' cannot be",
            "for all below",
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
            "'scopes' without a caller",
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
            "0.0.0.0/0 is wider than any network that was given out",
            "nothing would be protected",
        ),
        ("[lists]\nallow = [\"0.0.0.0/1\"]", 22, 10, "0.0.0.0/1 is wider than any", "--force"),
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
        (
            "[[issuer]]\nname = \"asn\"",
            22,
            8,
            "'asn:…' means something else in a verdict",
            "another name",
        ),
        (
            "[[issuer]]\nname = \"cafe\"",
            22,
            8,
            "'cafe:…' means something else in a verdict",
            "another name",
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
        ("[verdicts]\nfactor = 0", 22, 10, "out of range", "1 to 1000"),
        ("[verdicts]\nlongest = \"0s\"", 22, 11, "out of range", "1ms"),
        ("[verdicts]\ndecoys = [\"x\"]", 22, 11, "'x' is no path", "\"/.env\""),
        ("[verdicts]\nfacter = 1", 22, 1, "unknown key 'facter'", "did you mean 'factor'?"),
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
        + "[verdicts]\nfactor = 0\nlongest = \"1\"\n";
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

/// A subject may look like a key's id, and what a certificate maps to like a subject.
#[test]
fn an_owner_is_proved_in_one_way() {
    let issuer = |name: &str| {
        format!(
            "[[issuer]]\nname = \"{name}\"\nissuer = \"https://{name}.test\"\naudience = [\"a\"]\n\
             jwks_url = \"https://{name}.test/jwks\"\n"
        )
    };
    let told = |auth: &str, more: &str, equals: &str, issuers: &[&str]| {
        let issuers = issuers.iter().map(|name| issuer(name)).collect::<String>();
        let route = format!(
            "[[route]]\npath = \"/users\"\nmethods = [\"GET\"]\nauth = [{auth}]\n{more}\n\
             owner = {{ path = \"/users/{{id}}\", equals = \"{equals}\" }}\nupstream = \"api\""
        );
        let read = read(&plus(&format!("{issuers}{route}")));
        read.err().map_or_else(String::new, |mistakes| mistakes.to_string())
    };
    let named = "issuers = [\"one\"]";
    for (auth, more, equals, issuers, words) in [
        ("\"key\", \"jwt\"", "", "sub", &["one"][..], "several ways of proof"),
        ("\"signature\", \"jwt\"", named, "sub", &["one", "two"], "several ways of proof"),
        ("\"key\", \"mtls\"", "", "sub", &[], "several ways of proof"),
        ("\"key\", \"mtls\"", "", "name", &[], "several ways of proof"),
        ("\"jwt\", \"mtls\"", "", "sub", &["one"], "several ways of proof"),
        ("\"jwt\"", "", "sub", &["one", "two"], "several issuers"),
        ("\"jwt\", \"key\"", "", "tenant", &["one", "two"], "several issuers"),
    ] {
        let told = told(auth, more, equals, issuers);
        assert!(told.contains(words), "{auth} {more} {equals}: {told}");
    }
    for (auth, more, equals, issuers) in [
        ("\"key\", \"signature\"", "", "sub", &[][..]),
        ("\"jwt\"", named, "sub", &["one", "two"]),
        // What a key does not have, it cannot own by.
        ("\"jwt\", \"key\"", "", "tenant", &["one"]),
        ("\"jwt\", \"key\"", "", "name", &["one"]),
    ] {
        let told = told(auth, more, equals, issuers);
        assert!(!told.contains("owners by"), "{auth} {more} {equals}: {told}");
    }
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
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["edge.test".to_owned()]).unwrap();
    put("cert.pem", &own.self_signed(&key).unwrap().pem());
    put("key.pem", &key.serialize_pem());
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
    assert_eq!(settings.tls.certificates[0].key, folder.path().join("key.pem"));
    let allowed: Vec<_> = settings.lists.allow.iter().map(|(net, _)| net.to_string()).collect();
    assert_eq!(allowed, ["192.0.2.1/32", "2001:db8::/32"]);
    assert_eq!(settings.lists.deny.iter().count(), 2);
    let told = warnings.to_string();
    assert!(told.contains("deny.txt:2:1") && told.contains("read as 203.0.113.0/24"), "{told}");
}

#[test]
fn logs_lie_beside_the_configuration_and_are_doubted_where_they_cannot_be_written() {
    let folder = folder();
    let path = folder.path().join("edged.toml");
    let plain = fs::read_to_string(&path).unwrap();
    fs::write(&path, plain + "\n[log]\naccess = \"./access.log\"\nevents = \"gone/events.log\"\n")
        .unwrap();
    let (settings, warnings) = load(&path).unwrap();
    let own = folder.path().join("./access.log");
    assert_eq!(settings.log.access, Some(Events::File(own)));
    let told = warnings.to_string();
    assert!(told.contains("edged.toml:27:10") && told.contains("cannot be written"), "{told}");
    assert!(!told.contains("edged.toml:26"), "{told}");
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
fn a_secret_is_named_and_never_shown() {
    let folder = folder();
    let path = folder.path().join("edged.toml");
    let plain = fs::read_to_string(&path).unwrap();
    let told = |pepper: &str| {
        fs::write(&path, format!("{plain}\n[keys]\n{pepper}\n")).unwrap();
        mistakes_of(&folder)
    };
    let inline = told("pepper = \"hunter2hunter2hunter2hunter2hunter2\"");
    assert!(inline.contains("edged.toml:26:10") && inline.contains("file:PATH"), "{inline}");
    assert!(!inline.contains("hunter2"), "{inline}");
    let unset = told("pepper = \"env:EDGED_SURELY_UNSET\"");
    assert!(unset.contains("edged.toml:26:10") && unset.contains("not set"), "{unset}");
    let former = "former_peppers = [\"file:old\"]";
    assert!(told(former).contains("edged.toml:26:19"), "{}", told(former));
    let old = folder.path().join("old");
    fs::write(&old, [7; 31]).unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(told(former).contains("at least 32 bytes"), "{}", told(former));
    fs::write(&old, [7; 32]).unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(told(former).contains("everyone can read it"), "{}", told(former));
    fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(load(&path).is_ok(), "and a pepper that is not there yet is none");
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

/// A certificate for these names, good for so many days from `from` days on, and its key.
fn certify(folder: &tempfile::TempDir, file: &str, names: &[&str], from: i64) {
    use std::time::{Duration, SystemTime};
    let day = |days: i64| {
        let (now, by) = (SystemTime::now(), Duration::from_secs(days.unsigned_abs() * 86_400));
        if days < 0 { now - by } else { now + by }
    };
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    (params.not_before, params.not_after) = (day(from).into(), day(from + 2).into());
    let key = rcgen::KeyPair::generate().unwrap();
    let put = |end: &str, text: &str| {
        let path = folder.path().join(format!("{file}.{end}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    };
    put("pem", &params.self_signed(&key).unwrap().pem());
    put("key", &key.serialize_pem());
}

/// The folder's configuration with another `[tls]`.
fn with_tls(folder: &tempfile::TempDir, tls: &str) -> Result<(Settings, Warnings), Mistakes> {
    let path = folder.path().join("edged.toml");
    let single =
        "[tls]\ncertificate = \"/etc/edged/tls/cert.pem\"\nkey = \"/etc/edged/tls/key.pem\"\n";
    fs::write(&path, format!("{}{tls}\n", MINIMAL.replacen(single, "", 1))).unwrap();
    load(&path)
}

#[test]
fn certificates_are_read_before_they_are_served() {
    let folder = folder();
    certify(&folder, "a", &["a.test", "*.wild.test"], -1);
    certify(&folder, "b", &["b.test", "a.test"], -1);
    certify(&folder, "old", &["old.test"], -9);
    certify(&folder, "new", &["new.test"], 9);
    let entry = |chain: &str, key: &str, more: &str| {
        format!("[[tls.certificate]]\nchain = \"{chain}.pem\"\nkey = \"{key}.key\"\n{more}\n")
    };
    let wrong = |tls: &str, pieces: &[&str]| {
        let told = with_tls(&folder, tls).unwrap_err().to_string();
        for piece in pieces.iter().chain(&["1 mistake"]) {
            assert!(told.contains(piece), "{piece} in\n{told}");
        }
    };
    assert!(with_tls(&folder, &entry("a", "a", "names = [\"x.wild.test\"]")).is_ok());
    wrong(&entry("a", "b", ""), &["edged.toml:20:7", "b.key: is not the key of the certificate"]);
    wrong(&entry("a", "none", ""), &["edged.toml:20:7", "none.key: cannot be read"]);
    wrong(&entry("none", "a", ""), &["edged.toml:19:9", "none.pem: cannot be read"]);
    fs::write(folder.path().join("empty.pem"), "text").unwrap();
    wrong(&entry("empty", "a", ""), &["edged.toml:19:9", "holds no certificate"]);
    wrong(&entry("a", "a", "ocsp = \"a.pem\""), &["edged.toml:21:8", "no good OCSP response"]);
    wrong(
        &entry("a", "a", "names = [\"b.test\"]"),
        &["edged.toml:21:9", "not for 'b.test'", "*.wild.test"],
    );
    let both = entry("a", "a", "") + &entry("b", "b", "");
    wrong(&both, &["edged.toml:23:9", "certificates 1 and 2 are both for 'a.test'"]);
    let public = folder.path().join("a.key");
    fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).unwrap();
    wrong(&entry("a", "a", ""), &["edged.toml:20:7", "everyone can read the private key"]);
    fs::set_permissions(&public, fs::Permissions::from_mode(0o600)).unwrap();

    let doubts = entry("old", "old", "") + &entry("new", "new", "");
    let route = "[[route]]\npath = \"/\"\nhost = \"c.test\"\nmethods = [\"GET\"]\nauth = \"none\"\n\
                 upstream = \"api\"\n";
    let (_, warnings) = with_tls(&folder, &(doubts + route)).unwrap();
    let told = warnings.to_string();
    for piece in [
        "old.pem has expired on",
        "edged.toml:19:9",
        "new.pem is not good before",
        "edged.toml:23:9",
        "no certificate is for 'c.test'",
    ] {
        assert!(told.contains(piece), "{piece} in\n{told}");
    }
}

#[test]
fn what_is_asked_of_clients_must_be_possible() {
    let folder = folder();
    let base = "[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n";
    let told = |more: &str| with_tls(&folder, &format!("{base}{more}")).unwrap_err().to_string();
    let clients = |keys: &str| told(&format!("[tls.clients]\n{keys}"));
    for (keys, pieces) in [
        ("auth = \"optional\"", ["edged.toml:22:8", "without an authority to trust"]),
        ("pins = [\"sha256:12\"]", ["edged.toml:22:9", "64 hexadecimal digits"]),
        ("crl = [\"cert.pem\"]", ["edged.toml:21:1", "no authority to trust"]),
        ("ca = \"none.pem\"", ["edged.toml:22:6", "none.pem: cannot be read"]),
        ("ca = \"cert.pem\"\ncrl = [\"key.pem\"]", ["edged.toml:23:7", "no revocation list"]),
        ("auth = \"sometimes\"", ["edged.toml:22:8", "one of: off"]),
    ] {
        let told = clients(keys);
        assert!(pieces.iter().all(|piece| told.contains(piece)), "{pieces:?} in\n{told}");
    }
    let acme =
        told("[tls.acme]\ndirectory = \"http://x\"\nnames = [\"*.a.test\"]\ncontact = [\"me\"]");
    for piece in ["https://", "a wildcard cannot be proved", "mailto:", "3 mistakes"] {
        assert!(acme.contains(piece), "{piece} in\n{acme}");
    }
}

#[test]
fn what_an_upstream_is_spoken_to_with_is_read_before() {
    let folder = folder();
    certify(&folder, "own", &["edge.test"], -1);
    certify(&folder, "old", &["edge.test"], -9);
    certify(&folder, "new", &["edge.test"], 9);
    certify(&folder, "public", &["edge.test"], -1);
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    };
    put("empty.pem", "");
    put("text.pem", "this is no certificate");
    put("torn.pem", "-----BEGIN CERTIFICATE-----\nAAAA");
    put("absurd.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    put("absurd.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let public = folder.path().join("public.key");
    fs::set_permissions(&public, fs::Permissions::from_mode(0o644)).unwrap();
    let path = folder.path().join("edged.toml");
    // Another upstream, before it, names the same files, and they are good for that.
    let good = "[[upstream]]\nname = \"a\"\nservers = [\"127.0.0.1:81\"]\n\
                tls = { ca = \"cert.pem\", client_certificate = \"own.pem\", client_key = \"own.key\" }\n\
                [[route]]\npath = \"/a\"\nmethods = [\"GET\"]\nauth = \"none\"\nupstream = \"a\"\n";
    let told = |tls: &str| {
        let minimal = MINIMAL.replace("/etc/edged/tls/", "");
        let (before, after) = minimal.split_once("\n[[route]]").unwrap();
        let server = "servers = [\"127.0.0.1:8080\"]\n";
        let before = before.replace(server, &format!("{server}tls = {tls}\n"));
        let (head, upstream) = before.split_once("[[upstream]]").unwrap();
        let text = format!("{head}{good}[[upstream]]{upstream}\n[[route]]{after}");
        fs::write(&path, text).unwrap();
        match load(&path) {
            Ok((_, warnings)) => warnings.to_string(),
            Err(mistakes) => mistakes.to_string(),
        }
    };
    let ca = |file: &str| format!("{{ ca = {file:?} }}");
    let client = |certificate: &str, key: &str| {
        format!(
            "{{ ca = \"cert.pem\", client_certificate = {certificate:?}, client_key = {key:?} }}"
        )
    };
    let fine = told(&client("own.pem", "own.key"));
    assert!(!fine.contains("pem"), "{fine}");
    for (tls, column, pieces) in [
        (ca("none.pem"), 14, ["none.pem: cannot be read", "No such file"]),
        (ca("empty.pem"), 14, ["empty.pem: holds no certificate", "PEM"]),
        (ca("text.pem"), 14, ["text.pem: holds no certificate", "PEM"]),
        (ca("torn.pem"), 14, ["torn.pem: is no PEM", "PEM"]),
        (ca("absurd.pem"), 14, ["absurd.pem: holds no authority", "PEM"]),
        (client("none.pem", "own.key"), 47, ["none.pem: cannot be read", "No such file"]),
        (client("text.pem", "own.key"), 47, ["text.pem: holds no certificate", "PEM"]),
        (client("absurd.pem", "own.key"), 47, ["absurd.pem: is no certificate", "PEM"]),
        (client("old.pem", "old.key"), 47, ["old.pem has expired on", "will refuse it"]),
        (client("new.pem", "new.key"), 47, ["new.pem is not good before", "will refuse it"]),
        (client("own.pem", "none.key"), 71, ["none.key: cannot be read", "No such file"]),
        (client("own.pem", "text.pem"), 71, ["text.pem: holds nothing of the kind", "PEM"]),
        (client("own.pem", "absurd.key"), 71, ["absurd.key: is no key that can be used", "PEM"]),
        (client("own.pem", "old.key"), 71, ["old.key: is not the key of", "PEM"]),
        (client("public.pem", "public.key"), 74, ["everyone can read", "chmod o="]),
        (
            format!("{{ ca = \"cert.pem\", pins = [\"{}\"] }}", "ab".repeat(31)),
            34,
            ["not a SHA-256 digest", "64 hexadecimal digits"],
        ),
    ] {
        let told = told(&tls);
        let place = format!("edged.toml:24:{column}");
        for piece in pieces.iter().chain(&[place.as_str()]) {
            assert!(told.contains(piece), "{piece} of {tls} in\n{told}");
        }
        // A word of each, and of nothing else.
        assert_eq!(told.matches("edged.toml:").count(), 1, "{tls}: {told}");
    }
}
