//! Policies as they are written for agents of this protocol.

use nakai_protocols::agent::{
    CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest,
    ReadStreamRequest, SetPolicyRequest, Storage,
};
use nakai_protocols::oci;
use serde_json::json;

use super::*;

fn policy(text: &str) -> Policy {
    let policy = Policy::default();
    policy.replace(text).unwrap();
    policy
}

fn exec(args: &[&str]) -> ExecProcessRequest {
    let process =
        oci::Process { Args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..Default::default() };
    ExecProcessRequest { container_id: "c".into(), process: Some(process).into(), ..Default::default() }
}

#[test]
fn without_a_policy_everything_is_allowed() {
    let open = Policy::default();
    assert_eq!(open.check(&DestroySandboxRequest::new()).unwrap(), None);
}

#[test]
fn a_rule_sees_the_request_and_says_why_not() {
    let policy = policy(
        r#"package agent_policy
        default ExecProcessRequest := false
        default SetPolicyRequest := false
        DestroySandboxRequest := true
        ExecProcessRequest {
            input.container_id == "c"
            print("looking at", input.process.Args)
            input.process.Args == ["ls", "-l"]
        }"#,
    );
    policy.check(&DestroySandboxRequest::new()).unwrap();
    policy.check(&exec(&["ls", "-l"])).unwrap();
    let denied = policy.check(&exec(&["sh"])).unwrap_err();
    assert!(matches!(denied, PolicyError::Denied { .. }), "{denied}");
    let text = denied.to_string();
    assert!(text.starts_with("ExecProcessRequest is blocked by policy: "), "{text}");
    assert!(text.contains("looking at") && !text.contains('\n'), "{text}");
    assert!(policy.check(&SetPolicyRequest::new()).is_err());
}

#[test]
fn a_missing_rule_and_a_wrong_one_refuse_too() {
    let policy = policy("package agent_policy\nReadStreamRequest := \"yes\"");
    for request in [&ReadStreamRequest::new() as &dyn MessageDyn, &DestroySandboxRequest::new()] {
        let failed = policy.check(request).unwrap_err();
        assert!(matches!(failed, PolicyError::Failed { .. }), "{failed}");
    }
}

#[test]
fn a_policy_under_development_only_warns() {
    let policy =
        policy("package agent_policy\nAllowRequestsFailingPolicy := true\nReadStreamRequest := false");
    for request in [&ReadStreamRequest::new() as &dyn MessageDyn, &DestroySandboxRequest::new()] {
        assert!(policy.check(request).unwrap().is_some());
    }
}

#[test]
fn a_policy_remembers_what_it_has_allowed() {
    let text = r#"package agent_policy
        CreateSandboxRequest := {"allowed": true, "ops": ops} {
            not data.pstate.sandbox
            ops := [{"op": "add", "path": "/pstate/sandbox", "value": input.sandbox_id}]
        }
        default CreateContainerRequest := false
        CreateContainerRequest { input.container_id == data.pstate.sandbox }"#;
    let policy = policy(text);
    let container = CreateContainerRequest { container_id: "s".into(), ..Default::default() };
    assert!(policy.check(&container).is_err());
    policy.check(&CreateSandboxRequest { sandbox_id: "s".into(), ..Default::default() }).unwrap();
    policy.check(&container).unwrap();
    assert!(policy.check(&CreateSandboxRequest::new()).is_err(), "a second sandbox");
    policy.replace(text).unwrap();
    assert!(policy.check(&container).is_err(), "a new policy has nothing to remember");
}

#[test]
fn a_wrong_policy_leaves_the_one_before() {
    let policy = policy("package agent_policy\nReadStreamRequest := true");
    for bad in ["", "package agent_policy\nReadStreamRequest := {", "package other\nx := 1"] {
        let error = policy.replace(bad).unwrap_err();
        assert!(matches!(error, PolicyError::Invalid { .. }), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    policy.check(&ReadStreamRequest::new()).unwrap();
}

#[test]
fn the_newer_language_is_taken() {
    let policy = policy("package agent_policy\nimport rego.v1\nReadStreamRequest if input.len == 5");
    policy.check(&ReadStreamRequest { len: 5, ..Default::default() }).unwrap();
    assert!(policy.check(&ReadStreamRequest::new()).is_err());
}

#[test]
fn a_request_has_all_its_fields() {
    let storage = Storage { driver: "blk".into(), ..Default::default() };
    let request = CreateContainerRequest {
        storages: vec![storage],
        OCI: Some(oci::Spec {
            Annotations: [("a".to_owned(), "b".to_owned())].into(),
            Mounts: vec![oci::Mount { destination: "/x".into(), type_: "bind".into(), ..Default::default() }],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let seen = input::of(&request);
    assert_eq!(seen["container_id"], "");
    assert_eq!(seen["sandbox_pidns"], false);
    assert_eq!(seen["OCI"]["Annotations"], json!({ "a": "b" }));
    assert_eq!(seen["OCI"]["Process"], json!(null));
    assert_eq!(seen["OCI"]["Mounts"][0]["type_"], "bind");
    assert_eq!(seen["storages"][0]["fs_group"], json!(null));
    assert_eq!(seen["storages"][0]["options"], json!([]));
}

#[test]
fn a_file_is_seen_without_its_data() {
    let file =
        CopyFileRequest { file_mode: 0o100_644, data: vec![1; 100], file_size: 100, ..Default::default() };
    let seen = input::of(&file);
    assert_eq!((&seen["file_type"], &seen["symlink_target"]), (&json!("Regular"), &json!(null)));
    assert_eq!((seen.get("data"), &seen["file_size"]), (None, &json!(100)));
    let link = CopyFileRequest { file_mode: 0o120_777, data: b"/x".to_vec(), ..Default::default() };
    let seen = input::of(&link);
    assert_eq!((&seen["file_type"], &seen["symlink_target"]), (&json!("Symlink"), &json!("/x")));
}

/// Allows each exec once.
const ONCE: &str = r#"package agent_policy
default ExecProcessRequest := {"allowed": false}
DestroySandboxRequest := true
ExecProcessRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/ran", "value": true}]} {
    not data.pstate.ran
}"#;

#[test]
fn the_next_server_has_the_policy_and_what_it_remembers() {
    let directory = tempfile::tempdir().unwrap();
    let load = || {
        let records = Arc::new(Records::new(directory.path().join("settings")));
        records.prepare(&[]).unwrap();
        Policy::load(None, records).unwrap()
    };
    load().replace(ONCE).unwrap();
    load().check(&exec(&["ls"])).unwrap();
    assert!(matches!(load().check(&exec(&["ls"])), Err(PolicyError::Denied { .. })));
    load().check(&DestroySandboxRequest::new()).unwrap();
    assert!(load().replace("package agent_policy\n(").is_err());
    assert!(load().check(&exec(&["ls"])).is_err(), "a policy that is wrong changes nothing");
    // One that is set anew has nothing to remember.
    load().replace(ONCE).unwrap();
    load().check(&exec(&["ls"])).unwrap();
}
