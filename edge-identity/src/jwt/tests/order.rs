//! The token validation flow: what is checked, in which order, with which status.

use edge_common::Reason;
use edge_policy::denied;
use serde_json::{Value, json};

use super::super::denylist::{Denial, Denylist, Target};
use super::super::{
    Algorithm, Fault, Issuer, KeySet, Presented, Profile, Unverified, Verified, VerifyingKey,
};
use super::signer::{NOW_MS, NOW_S, SECRET, Signer, claims, issuer};

fn verified(token: &str, issuer: &Issuer, keys: &KeySet) -> Result<Verified, Fault> {
    issuer.verify(Unverified::parse(token, 8192)?, keys)
}

fn judged(token: &str, issuer: &Issuer, keys: &KeySet, denylist: &Denylist) -> Result<(), Fault> {
    let verified = verified(token, issuer, keys)?;
    let presented =
        Presented { now_ms: NOW_MS, denylist, audience: &[], proof_key: None, certificate: None };
    issuer.admit(&verified, &presented)
}

fn with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn denying(target: Target) -> Denylist {
    let issuer = claims()["iss"].as_str().unwrap().to_owned();
    let (since_ms, until_ms, by) = (NOW_MS - 5_000, Some(NOW_MS + 60_000), "root".into());
    let list = Denylist::default();
    list.put(&Denial { issuer, target, since_ms, until_ms, by });
    list
}

/// Row 26 of the seeds: format, signature, expiry 401; audience 403; scope is the route's.
#[test]
fn seed_26_validation_flow_order_and_codes() {
    let (signer, other) = (Signer::new(Algorithm::Es256), Signer::new(Algorithm::Es256));
    let (keys, issuer) = (signer.set(), issuer());
    let nobody = Denylist::default();
    let jti = denying(Target::Jti("t-1".into()));
    let bad_aud = json!({"aud": "x"});
    let expired = json!({"aud": "x", "exp": NOW_S - 6, "cnf": {"x5t#S256": "A".repeat(43)}});
    let bound = json!({"aud": "x", "cnf": {"x5t#S256": "A".repeat(43)}});
    // Each token has every fault that comes later as well: the first that counts answers.
    for (token, denylist, fault, status) in [
        ("a.b.c".to_owned(), &jti, Some(Fault::Base64), 401),
        (other.token(&with(&expired)), &jti, Some(Fault::Signature), 401),
        (signer.token(&with(&expired)), &jti, Some(Fault::Expired), 401),
        (signer.token(&with(&bound)), &jti, Some(Fault::Revoked), 401),
        (signer.token(&with(&bound)), &nobody, Some(Fault::Sender), 401),
        (signer.token(&with(&bad_aud)), &nobody, Some(Fault::Audience), 403),
        (signer.token(&claims()), &nobody, None, 200),
    ] {
        let found = judged(&token, &issuer, &keys, denylist).err();
        assert_eq!(found, fault);
        let reason = fault.map_or(Reason::Serve, Fault::reason);
        assert_eq!(denied::status(reason).as_u16(), status, "{fault:?}");
    }
}

#[test]
fn every_algorithm_verifies_and_only_under_its_own_name() {
    let issuer = issuer();
    for algorithm in issuer.algorithms.clone() {
        let signer = Signer::new(algorithm);
        let keys = signer.set();
        let token = signer.token(&claims());
        assert!(verified(&token, &issuer, &keys).is_ok(), "{algorithm:?}");
        // Of a key that says which algorithm it is for, no other is taken.
        let mut jwk = signer.named("k");
        jwk["alg"] = algorithm.name().into();
        let own = super::signer::set(&[jwk]);
        assert!(verified(&token, &issuer, &own).is_ok(), "{algorithm:?}");
        let narrow = Issuer { algorithms: vec![algorithm], ..issuer.clone() };
        assert!(verified(&token, &narrow, &keys).is_ok());
        for other in Algorithm::ALL.into_iter().filter(|other| *other != algorithm) {
            let header = format!(r#"{{"alg":"{}","kid":"k","typ":"at+jwt"}}"#, other.name());
            let lying = signer.seal(&header, &claims().to_string());
            let fault = verified(&lying, &issuer, &keys).unwrap_err();
            assert!(matches!(fault, Fault::Algorithm | Fault::Signature), "{other:?} {fault:?}");
            assert_eq!(verified(&lying, &issuer, &own), Err(Fault::Algorithm));
            assert_eq!(verified(&lying, &narrow, &keys), Err(Fault::Algorithm));
        }
    }
}

#[test]
fn times_have_a_leeway_and_lives_a_bound() {
    let signer = Signer::new(Algorithm::EdDsa);
    let (keys, issuer, nobody) = (signer.set(), issuer(), Denylist::default());
    for (changes, fault) in [
        (json!({"exp": NOW_S - 4}), None),
        (json!({"exp": NOW_S - 5}), Some(Fault::Expired)),
        (json!({"exp": 0}), Some(Fault::Expired)),
        (json!({"nbf": NOW_S + 5}), None),
        (json!({"nbf": NOW_S + 6}), Some(Fault::NotYet)),
        (json!({"nbf": 4_070_908_800_u64}), Some(Fault::NotYet)),
        (json!({"iat": NOW_S + 5}), None),
        (json!({"iat": NOW_S + 6}), Some(Fault::NotYet)),
        (json!({"iat": NOW_S, "exp": NOW_S + 3600}), None),
        (json!({"iat": NOW_S, "exp": NOW_S + 3601}), Some(Fault::Lifetime)),
        (json!({"iat": NOW_S - 3500, "exp": NOW_S + 3600}), Some(Fault::Lifetime)),
    ] {
        let token = signer.token(&with(&changes));
        assert_eq!(judged(&token, &issuer, &keys, &nobody).err(), fault, "{changes}");
    }
    let plain = Issuer { profile: Profile::Plain, ..issuer };
    // Without `iat` a token of ten years would be good in its last hour: no bound could be told.
    for exp in [NOW_S + 60, NOW_S + 7200] {
        let no_iat = signer.token(&with(&json!({"iat": null, "exp": exp})));
        assert_eq!(judged(&no_iat, &plain, &keys, &nobody), Err(Fault::Claims), "{exp}");
    }
    let no_exp = signer.token(&with(&json!({"exp": null})));
    assert_eq!(judged(&no_exp, &plain, &keys, &nobody), Err(Fault::Claims));
}

#[test]
fn issuer_and_audience_are_compared_whole() {
    let signer = Signer::new(Algorithm::Es256);
    let (keys, issuer, nobody) = (signer.set(), issuer(), Denylist::default());
    let aud = "https://api.example";
    for (changes, fault) in [
        (json!({"aud": ["x", aud]}), None),
        (json!({"aud": []}), Some(Fault::Claims)),
        (json!({"aud": ["https://api.example/"]}), Some(Fault::Audience)),
        (json!({"aud": "https://API.example"}), Some(Fault::Audience)),
        (json!({"aud": "*"}), Some(Fault::Audience)),
        (json!({"aud": format!("x {aud}")}), Some(Fault::Audience)),
        (json!({"aud": null}), Some(Fault::Claims)),
        (json!({"iss": "https://issuer.example/"}), Some(Fault::Issuer)),
        (json!({"iss": ["https://issuer.example"]}), Some(Fault::Claims)),
        (json!({"iss": null}), Some(Fault::Claims)),
    ] {
        let token = signer.token(&with(&changes));
        assert_eq!(judged(&token, &issuer, &keys, &nobody).err(), fault, "{changes}");
    }
}

#[test]
fn profiles_say_what_a_token_is_and_has() {
    let signer = Signer::new(Algorithm::Es256);
    let (keys, strict) = (signer.set(), issuer());
    let plain = Issuer { profile: Profile::Plain, ..strict.clone() };
    let typed = |typ: &str| {
        let header = format!(r#"{{"alg":"ES256","kid":"k"{typ}}}"#);
        signer.seal(&header, &claims().to_string())
    };
    for (typ, access_token, other) in [
        (r#","typ":"at+jwt""#, true, true),
        (r#","typ":"application/at+jwt""#, true, true),
        (r#","typ":"JWT""#, false, true),
        ("", false, true),
        (r#","typ":"dpop+jwt""#, false, false),
        (r#","typ":"logout+jwt""#, false, false),
        (r#","typ":"id+jwt""#, false, false),
        (r#","typ":"""#, false, false),
    ] {
        assert_eq!(verified(&typed(typ), &strict, &keys).is_ok(), access_token, "{typ}");
        assert_eq!(verified(&typed(typ), &plain, &keys).is_ok(), other, "{typ}");
    }
    for missing in ["sub", "client_id", "iat", "jti", "aud"] {
        let token = signer.token(&with(&json!({missing: null})));
        assert_eq!(verified(&token, &strict, &keys), Err(Fault::Claims), "{missing}");
        let suffices = missing != "iat";
        assert_eq!(verified(&token, &plain, &keys).is_ok(), suffices, "{missing}");
    }
    let nobodys = signer.token(&with(&json!({"sub": null, "client_id": null})));
    assert_eq!(verified(&nobodys, &plain, &keys), Err(Fault::Claims));
}

#[test]
fn a_token_says_what_its_bearer_may_and_is() {
    let signer = Signer::new(Algorithm::Es256);
    let (keys, issuer) = (signer.set(), issuer());
    let grants = |changes: &Value| verified(&signer.token(&with(changes)), &issuer, &keys);
    let plain = grants(&json!({"realm": {"roles": ["admin"]}, "tier": "gold"})).unwrap();
    assert_eq!(
        (plain.scopes, plain.roles),
        (vec!["read".to_owned(), "write".to_owned()], vec!["admin".to_owned()],)
    );
    assert_eq!((plain.tier.as_deref(), plain.key.as_str()), (Some("gold"), "k"));
    let scp = grants(&json!({"scope": null, "scp": ["a", "b"]})).unwrap();
    assert_eq!(scp.scopes, ["a", "b"]);
    assert_eq!(grants(&json!({"scope": null})).unwrap().scopes, [""; 0]);
    assert_eq!(grants(&json!({"scope": 7})), Err(Fault::Claims));
    assert_eq!(grants(&json!({"realm": {"roles": [1]}})), Err(Fault::Claims));
}

#[test]
fn denied_tokens_are_known_by_each_of_their_names() {
    let signer = Signer::new(Algorithm::Es256);
    let (keys, issuer) = (signer.set(), issuer());
    let token = signer.token(&with(&json!({"sid": "s-1"})));
    let check = |list: &Denylist, now_ms| {
        list.denies(&verified(&token, &issuer, &keys).unwrap(), 0, now_ms)
    };
    for (target, denied) in [
        (Target::Jti("t-1".into()), true),
        (Target::Sub("alice".into()), true),
        (Target::Sid("s-1".into()), true),
        (Target::Kid("k".into()), true),
        (Target::Jti("alice".into()), false),
        (Target::Sub("t-1".into()), false),
        (Target::Sid("k".into()), false),
        (Target::Kid("s-1".into()), false),
    ] {
        let list = denying(target.clone());
        assert_eq!(check(&list, NOW_MS), denied, "{target:?}");
        assert!(!check(&list, NOW_MS + 60_000), "{target:?} ends");
        let elsewhere = Denial {
            issuer: "https://other.example".into(),
            target,
            since_ms: NOW_MS,
            until_ms: Some(NOW_MS + 1),
            by: String::new(),
        };
        let others = Denylist::default();
        others.put(&elsewhere);
        assert!(!check(&others, NOW_MS));
    }
    let (list, jti) = (denying(Target::Jti("t-1".into())), Target::Jti("t-1".into()));
    let issuer_url = claims()["iss"].as_str().unwrap().to_owned();
    let by = String::new();
    list.remove(&Denial { issuer: issuer_url, target: jti, since_ms: 0, until_ms: None, by });
    assert!(!check(&list, NOW_MS), "taken back");
    // A subject's later tokens are good again, but for those of a clock that is ahead.
    for (iat, denied) in [(NOW_S - 6, true), (NOW_S - 5, true), (NOW_S, true), (NOW_S + 1, false)] {
        let token = signer.token(&with(&json!({"iat": iat})));
        let token = verified(&token, &issuer, &keys).unwrap();
        let list = denying(Target::Sub("alice".into()));
        assert_eq!(list.denies(&token, issuer.leeway_ms, NOW_MS), denied, "{iat}");
    }
}

/// What everybody else knows a token by, it is denied by.
#[test]
fn a_token_without_a_subject_is_denied_by_its_client() {
    let signer = Signer::new(Algorithm::Es256);
    let (keys, issuer) = (signer.set(), Issuer { profile: Profile::Plain, ..issuer() });
    let token = signer.token(&with(&json!({"sub": null})));
    let token = verified(&token, &issuer, &keys).unwrap();
    let id = token.named(&issuer).id;
    assert_eq!(id, "client:app");
    assert!(denying(Target::Sub(id)).denies(&token, 0, NOW_MS));
    assert!(!denying(Target::Sub("app".into())).denies(&token, 0, NOW_MS));
}

/// A secret and a key from a PEM file have names to be denied by, too.
#[test]
fn a_key_without_a_name_is_denied_by_its_thumbprint() {
    let hs256 = [Algorithm::Hs256];
    let key = |secret: &[u8]| VerifyingKey::from_secret(secret, &hs256).unwrap();
    let keys = KeySet::new(vec![key(&[7; 32]), key(SECRET)]).unwrap();
    let issuer = Issuer { algorithms: hs256.to_vec(), ..issuer() };
    let token = Signer::new(Algorithm::Hs256).token(&claims());
    let token = verified(&token, &issuer, &keys).unwrap();
    let [other, own] = keys.keys() else { panic!("two") };
    assert!(denying(Target::Kid(own.called())).denies(&token, 0, NOW_MS));
    assert!(!denying(Target::Kid(other.called())).denies(&token, 0, NOW_MS));
    assert!(!denying(Target::Kid(String::new())).denies(&token, 0, NOW_MS));
}

#[test]
fn a_denial_without_an_end_never_ends() {
    let signer = Signer::new(Algorithm::Es256);
    let token = verified(&signer.token(&claims()), &issuer(), &signer.set()).unwrap();
    let (issuer, target) = (issuer().issuer, Target::Kid("k".into()));
    let list = Denylist::default();
    let by = String::new();
    list.put(&Denial { issuer, target, since_ms: NOW_MS, until_ms: None, by });
    assert!(list.denies(&token, 0, NOW_MS) && list.denies(&token, 0, NOW_MS * 1_000));
}

#[test]
fn a_denial_lasts_as_long_as_any_token_that_it_is_about() {
    let signer = Signer::new(Algorithm::EdDsa);
    let (keys, issuer) = (signer.set(), issuer());
    let most_s = issuer.accepted_ms() / 1000;
    assert_eq!(most_s, 3600 + 2 * 5);
    for target in [Target::Jti("t-1".into()), Target::Sub("alice".into()), Target::Kid("k".into())]
    {
        let list = Denylist::default();
        list.put(&Denial {
            issuer: issuer.issuer.clone(),
            target: target.clone(),
            since_ms: NOW_MS,
            until_ms: Some(NOW_MS + issuer.accepted_ms()),
            by: String::new(),
        });
        // Its clock is ahead as far as may be, and its tokens live as long as may be.
        let ends_s = NOW_S + 5 + 3600;
        let token = signer.token(&with(&json!({"iat": NOW_S + 5, "exp": ends_s})));
        let token = verified(&token, &issuer, &keys).unwrap();
        for (now_s, fault) in [
            (NOW_S, Fault::Revoked),
            (ends_s, Fault::Revoked),
            (ends_s + 4, Fault::Revoked),
            (ends_s + 5, Fault::Expired),
            (NOW_S + most_s, Fault::Expired),
        ] {
            let found = issuer.check_again(&token, &list, now_s * 1000);
            assert_eq!(found, Err(fault), "{target:?} {now_s}");
        }
    }
}
