//! Packets from listed networks end before TCP, by file, by configuration and by edgectl.

use std::time::Duration;

use anyhow::Result;
use edge_common::Reason;
use edge_tests::{
    Lab,
    client::{reaches, until},
    lab::{ATTACKER, ATTACKER6, CLIENT, CLIENT6, FRIEND, LISTED, LISTED6},
};

#[test]
fn a_denied_network_gets_no_answer_and_is_counted() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    for source in [CLIENT, CLIENT6, ATTACKER, ATTACKER6] {
        assert!(reaches(&lab, source, 443), "{source}");
    }
    for source in [LISTED, LISTED6] {
        let before = edged.metrics()?.packets(Reason::DenyList);
        assert!(!reaches(&lab, source, 443), "{source}");
        assert!(edged.metrics()?.packets(Reason::DenyList) > before, "{source}");
    }
    Ok(())
}

#[test]
fn a_denied_network_may_come_from_a_file() -> Result<()> {
    let lab = Lab::new()?;
    let file = lab.dir().join("deny.txt");
    std::fs::write(&file, "# a list\n198.51.100.66 ; one address\n2001:db8:0:66::/64\n")?;
    let edged = lab.edged()?.set("lists.deny_files", &format!("[{file:?}]")).start()?;
    assert!(!reaches(&lab, ATTACKER, 443));
    assert!(!reaches(&lab, ATTACKER6, 443));
    assert!(reaches(&lab, CLIENT, 443));
    std::fs::write(&file, "2001:db8:0:66::/64\n")?;
    edged.tell("reload")?;
    assert!(reaches(&lab, ATTACKER, 443));
    assert!(!reaches(&lab, ATTACKER6, 443));
    Ok(())
}

#[test]
fn edgectl_denies_and_pardons() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    for (source, network) in [(ATTACKER, "198.51.100.64/28"), (ATTACKER6, "2001:db8:0:66::/64")] {
        edged.tell(&format!("deny add {network}"))?;
        assert!(!reaches(&lab, source, 443), "{source}");
        assert!(edged.tell("deny list")?.contains(network));
        edged.tell(&format!("deny remove {network}"))?;
        // Over IPv6 the denied host could not even ask for the edge's link address, and its own
        // kernel waits some seconds before it asks again.
        until("it is answered", Duration::from_secs(8), || Ok(reaches(&lab, source, 443)))?;
    }
    Ok(())
}

#[test]
fn a_denial_with_an_end_ends_by_itself() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    edged.tell(&format!("deny add {ATTACKER} --ttl 4s --reason noise"))?;
    assert!(!reaches(&lab, ATTACKER, 443));
    until("the entry ends", Duration::from_secs(6), || Ok(reaches(&lab, ATTACKER, 443)))?;
    Ok(())
}

#[test]
fn allow_beats_deny() -> Result<()> {
    let lab = Lab::new()?;
    let edged = lab.edged()?.start()?;
    let before = edged.metrics()?.packets(Reason::AllowList);
    edged.tell(&format!("deny add {FRIEND}"))?;
    assert!(reaches(&lab, FRIEND, 443));
    assert!(edged.metrics()?.packets(Reason::AllowList) > before);
    edged.tell(&format!("allow add {LISTED}"))?;
    assert!(reaches(&lab, LISTED, 443));
    Ok(())
}
