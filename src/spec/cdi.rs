//! What a CDI device adds to a container: its `containerEdits` (SPEC.md of the Container Device Interface).

use std::path::PathBuf;

use oci_spec::runtime::{Hook, Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType as Type, Mount, Spec};
use serde::Deserialize;

use super::SpecError;

/// Edits of one kind or device.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CdiEdits {
    env: Vec<String>,
    /// Nodes; those without a number have it from the guest: see [`CdiEdits::nodes_without_number`].
    device_nodes: Vec<CdiNode>,
    mounts: Vec<CdiMount>,
    hooks: Vec<CdiHook>,
    intel_rdt: Option<serde_json::Value>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CdiNode {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl CdiNode {
    /// Its path in the guest.
    pub fn guest_path(&self) -> PathBuf {
        self.host_path
            .clone()
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or_else(|| self.path.clone())
    }

    /// Says what it is.
    pub fn set_number(&mut self, is_block: bool, major: u64, minor: u64) {
        self.kind = Some(if is_block { "b" } else { "c" }.to_owned());
        self.major = i64::try_from(major).ok();
        self.minor = i64::try_from(minor).ok();
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CdiMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CdiHook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

impl CdiEdits {
    /// The nodes whose number is still to be found.
    pub fn nodes_without_number(&mut self) -> impl Iterator<Item = &mut CdiNode> {
        self.device_nodes.iter_mut().filter(|node| {
            let is_pipe = node.kind.as_deref() == Some("p");
            !is_pipe && (node.kind.is_none() || node.major.is_none() || node.minor.is_none())
        })
    }

    /// Makes the edits. Nodes and mounts at a path that the spec has already take its place.
    ///
    /// # Errors
    /// [`SpecError`] for what is no edit, or can't be done.
    pub fn apply(&self, spec: &mut Spec) -> Result<(), SpecError> {
        if self.intel_rdt.is_some() {
            return Err(invalid("CDI intelRdt", "", "cache allocation is not there"));
        }
        self.edit_process(spec);
        for node in &self.device_nodes {
            add_node(spec, node)?;
        }
        for mount in &self.mounts {
            add_mount(spec, mount);
        }
        for hook in &self.hooks {
            add_hook(spec, hook)?;
        }
        Ok(())
    }

    fn edit_process(&self, spec: &mut Spec) {
        let Some(process) = spec.process_mut().as_mut() else { return };
        let mut env = process.env().clone().unwrap_or_default();
        for entry in &self.env {
            let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
            env.retain(|known| known.split_once('=').map_or(known.as_str(), |(name, _)| name) != name);
            env.push(entry.clone());
        }
        process.set_env(Some(env));
        let user = process.user_mut();
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        for group in self.additional_gids.iter().filter(|group| **group != 0) {
            if !groups.contains(group) {
                groups.push(*group);
            }
        }
        user.set_additional_gids((!groups.is_empty()).then_some(groups));
    }
}

fn invalid(field: &'static str, value: &str, reason: &'static str) -> SpecError {
    SpecError::Invalid { field, value: value.chars().take(80).collect(), reason }
}

fn add_node(spec: &mut Spec, node: &CdiNode) -> Result<(), SpecError> {
    let path = node.path.display().to_string();
    let kind = match node.kind.as_deref() {
        Some("b") => Type::B,
        Some("c") => Type::C,
        Some("u") => Type::U,
        Some("p") => Type::P,
        _ => return Err(invalid("CDI deviceNodes", &path, "its type is not b, c, u or p")),
    };
    let mut device = LinuxDevice::default();
    device.set_path(node.path.clone()).set_typ(kind);
    device.set_major(node.major.unwrap_or(0)).set_minor(node.minor.unwrap_or(0));
    // One that names no owner is for the process to use, whoever that is.
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let (uid, gid) = user.unwrap_or_default();
    let owner = |named: Option<u32>, own: u32| named.or_else(|| (own != 0).then_some(own));
    device.set_file_mode(node.file_mode).set_uid(owner(node.uid, uid)).set_gid(owner(node.gid, gid));
    let mut linux = spec.linux_mut().take().unwrap_or_default();
    let mut nodes = linux.devices().clone().unwrap_or_default();
    nodes.retain(|known| known.path() != device.path());
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    // Without rules each node is allowed. A rule that is the only one would take that from the others.
    if !rules.is_empty() && kind != Type::P {
        let mut rule = LinuxDeviceCgroup::from(&device);
        match node.permissions.as_deref() {
            None | Some("") => rules.push(rule),
            // The node alone.
            Some("none") => {}
            Some(access) => {
                rule.set_access(Some(access.to_owned()));
                rules.push(rule);
            }
        }
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
    }
    nodes.push(device);
    linux.set_devices(Some(nodes));
    spec.set_linux(Some(linux));
    Ok(())
}

fn add_mount(spec: &mut Spec, edit: &CdiMount) {
    let mut options = edit.options.clone();
    let kind = edit.kind.clone().filter(|kind| !kind.is_empty());
    let is_bind = kind.as_deref().is_none_or(|kind| kind == "bind" || kind == "none");
    if is_bind && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".to_owned());
    }
    let mut mount = Mount::default();
    mount.set_destination(edit.container_path.clone()).set_source(Some(edit.host_path.clone()));
    mount.set_typ(Some(kind.unwrap_or_else(|| "bind".to_owned()))).set_options(Some(options));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|known| known.destination() != mount.destination());
    // It would hide those beneath it that were made before.
    let beneath = |known: &Mount| known.destination().starts_with(mount.destination());
    let at = mounts.iter().position(beneath).unwrap_or(mounts.len());
    mounts.insert(at, mount);
    spec.set_mounts(Some(mounts));
}

fn add_hook(spec: &mut Spec, edit: &CdiHook) -> Result<(), SpecError> {
    let mut hook = Hook::default();
    let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    hook.set_path(edit.path.clone()).set_args(some(&edit.args)).set_env(some(&edit.env));
    hook.set_timeout(edit.timeout);
    let mut hooks = spec.hooks_mut().take().unwrap_or_default();
    let with = |list: &Option<Vec<Hook>>| {
        let mut list = list.clone().unwrap_or_default();
        list.push(hook.clone());
        Some(list)
    };
    match edit.hook_name.as_str() {
        "prestart" => drop(hooks.set_prestart(with(hooks.prestart()))),
        "createRuntime" => drop(hooks.set_create_runtime(with(hooks.create_runtime()))),
        "createContainer" => drop(hooks.set_create_container(with(hooks.create_container()))),
        "startContainer" => drop(hooks.set_start_container(with(hooks.start_container()))),
        "poststart" => drop(hooks.set_poststart(with(hooks.poststart()))),
        "poststop" => drop(hooks.set_poststop(with(hooks.poststop()))),
        other => return Err(invalid("CDI hooks", other, "there is no such hook")),
    }
    spec.set_hooks((hooks != Hooks::default()).then_some(hooks));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn run(spec: Value, edits: Value) -> Result<Value, String> {
        let mut spec: Spec = serde_json::from_value(spec).unwrap();
        let edits: CdiEdits = serde_json::from_value(edits).map_err(|error| error.to_string())?;
        edits.apply(&mut spec).map_err(|error| error.to_string())?;
        Ok(serde_json::to_value(&spec).unwrap())
    }

    fn process() -> Value {
        json!({"user": {"uid": 0, "gid": 0, "additionalGids": [7]}, "cwd": "/", "args": ["x"], "env": ["A=1", "B=2"]})
    }

    #[test]
    fn a_device_brings_its_node_variables_mounts_hooks_and_groups() {
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": process(),
            "mounts": [{"destination": "/lib/gpu", "source": "/old", "type": "bind"}],
            "linux": {
                "devices": [{"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 1}],
                "resources": {"devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}]},
            },
        });
        let edits = json!({
            "env": ["B=3", "GPU=0"],
            "deviceNodes": [
                {"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "permissions": "rw", "fileMode": 438},
            ],
            "mounts": [{"hostPath": "/usr/lib/gpu", "containerPath": "/lib/gpu", "options": ["ro", "nosuid"]}],
            "hooks": [{"hookName": "createContainer", "path": "/usr/bin/ldcache", "args": ["ldcache", "update"]}],
            "additionalGids": [44, 0, 7],
        });
        let edited = run(spec, edits).unwrap();
        assert_eq!(edited["process"]["env"], json!(["A=1", "B=3", "GPU=0"]));
        assert_eq!(edited["process"]["user"]["additionalGids"], json!([7, 44]));
        let nodes = edited["linux"]["devices"].as_array().unwrap();
        assert_eq!((nodes.len(), &nodes[0]["major"], &nodes[0]["fileMode"]), (1, &json!(195), &json!(438)));
        let rules = edited["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!((rules.len(), &rules[1]["major"], &rules[1]["access"]), (2, &json!(195), &json!("rw")));
        let mounts = edited["mounts"].as_array().unwrap();
        assert_eq!((mounts.len(), &mounts[0]["source"]), (1, &json!("/usr/lib/gpu")));
        assert_eq!(mounts[0]["options"], json!(["ro", "nosuid", "rbind"]));
        assert_eq!(edited["hooks"]["createContainer"][0]["path"], "/usr/bin/ldcache");
    }

    #[test]
    fn without_rules_a_node_brings_none() {
        let spec = json!({"ociVersion": "1.0.2", "linux": {}});
        let node = json!({"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0});
        let edited = run(spec, json!({"deviceNodes": [node]})).unwrap();
        assert_eq!(edited["linux"]["resources"]["devices"].as_array().map_or(0, Vec::len), 0);
        assert_eq!(edited["linux"]["devices"][0]["major"], 195);
    }

    #[test]
    fn a_node_without_an_owner_is_the_users() {
        let mut user = process();
        user["user"]["uid"] = json!(1000);
        let node = |extra: Value| {
            let mut node = json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 432});
            node.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            node
        };
        for (process, extra, owner) in [
            (user.clone(), json!({}), [json!(1000), json!(null)]),
            (user, json!({"uid": 0, "gid": 44}), [json!(0), json!(44)]),
            (process(), json!({}), [json!(null), json!(null)]),
        ] {
            let spec = json!({"ociVersion": "1.0.2", "process": process, "linux": {}});
            let edited = run(spec, json!({"deviceNodes": [node(extra)]})).unwrap();
            let made = &edited["linux"]["devices"][0];
            assert_eq!([made["uid"].clone(), made["gid"].clone()], owner);
        }
    }

    #[test]
    fn a_mount_comes_before_those_beneath_it() {
        let mount = |destination: &str| json!({"destination": destination, "source": "/s", "type": "bind"});
        let mounts = ["/proc", "/opt/a/b", "/opt/ab"].map(mount);
        let spec = json!({"ociVersion": "1.0.2", "mounts": mounts, "linux": {}});
        let edit = |path: &str| json!({"hostPath": "/s", "containerPath": path});
        let edited = run(spec, json!({"mounts": [edit("/opt/a"), edit("/usr/lib/gpu")]})).unwrap();
        let mounts = edited["mounts"].as_array().unwrap();
        let order: Vec<_> = mounts.iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
        assert_eq!(order, ["/proc", "/opt/a", "/opt/a/b", "/opt/ab", "/usr/lib/gpu"]);
    }

    #[test]
    fn a_node_that_may_be_used_by_nobody_brings_no_rule() {
        let rules = json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}]);
        let spec = json!({"ociVersion": "1.0.2", "linux": {"resources": {"devices": rules}}});
        let node = json!({"path": "/dev/x", "type": "c", "major": 195, "minor": 0, "permissions": "none"});
        let edited = run(spec, json!({"deviceNodes": [node]})).unwrap();
        assert_eq!(edited["linux"]["resources"]["devices"], rules);
    }

    #[test]
    fn what_is_no_edit_is_refused_by_name() {
        for (edits, named) in [
            (json!({"intelRdt": {}}), "intelRdt"),
            (json!({"netDevices": [{"hostInterfaceName": "eth5", "name": "gpu"}]}), "netDevices"),
            (json!({"deviceNodes": [{"path": "/dev/x", "type": "p", "selinuxLabel": "l"}]}), "selinuxLabel"),
            (json!({"deviceNodes": [{"path": "/dev/x"}]}), "/dev/x"),
            (json!({"hooks": [{"hookName": "later", "path": "/x"}]}), "later"),
            (json!({"mounts": [{"hostPath": "/x"}]}), "containerPath"),
        ] {
            let error = run(json!({"ociVersion": "1.0.2", "linux": {}}), edits).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn only_nodes_without_a_number_are_looked_up() {
        let nodes = json!([
            {"path": "/dev/a", "type": "c", "major": 1, "minor": 2},
            {"path": "/dev/b", "hostPath": "/dev/vendor/b"},
            {"path": "/dev/p", "type": "p"},
        ]);
        let mut edits: CdiEdits = serde_json::from_value(json!({"deviceNodes": nodes})).unwrap();
        let mut looked_up: Vec<_> = edits.nodes_without_number().collect();
        assert_eq!(looked_up.len(), 1);
        assert_eq!(looked_up[0].guest_path(), PathBuf::from("/dev/vendor/b"));
        looked_up[0].set_number(false, 5, 6);
        assert_eq!(edits.nodes_without_number().count(), 0);
    }
}
