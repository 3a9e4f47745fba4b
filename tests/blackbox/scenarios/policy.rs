//! What a policy lets through, on the wire. Most of it needs an agent that was built with the feature `policy`:
//! `cargo test --features policy --test blackbox -- host::policy` builds it.

use nakai_ctl::CallError;
use nakai_protocols::agent::SetPolicyRequest;
use ttrpc::Code;

use crate::harness::expect::refused;
use crate::harness::{Ctx, Outcome, Scenario, scenario};

#[cfg(not(feature = "policy"))]
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(an_agent_without_policies_refuses_one)]
}

#[cfg(feature = "policy")]
pub(crate) fn scenarios() -> Vec<Scenario> {
    use enforced::{
        OF_THE_IMAGE, the_policy_of_the_image_decides_until_the_host_sets_another,
        without_a_policy_the_first_one_is_the_hosts,
    };
    vec![
        scenario!(the_policy_of_the_image_decides_until_the_host_sets_another).policy(OF_THE_IMAGE),
        scenario!(without_a_policy_the_first_one_is_the_hosts).own_agent().host_only(),
    ]
}

async fn set(ctx: &Ctx, policy: &str) -> Result<(), CallError> {
    let request = SetPolicyRequest { policy: policy.to_owned(), ..Default::default() };
    let answer = ctx.client().agent().set_policy(ctx.client().context(), &request).await;
    answer.map(drop).map_err(|error| CallError::new("SetPolicy", "", error))
}

/// As every agent of this protocol that can't check anything.
#[cfg(not(feature = "policy"))]
async fn an_agent_without_policies_refuses_one(ctx: Ctx) -> Outcome {
    refused(
        set(&ctx, "package agent_policy").await,
        Code::NOT_FOUND,
        &["SetPolicy is not supported", "`policy`"],
    );
    Ok(())
}

#[cfg(feature = "policy")]
mod enforced {
    use nakai_ctl::sandbox;

    use super::super::recovery::crash;
    use super::*;
    use crate::harness::expect::succeeded;

    /// As it comes with a guest's image: one container of a known command, one exec in it, and a first policy from the
    /// host.
    pub(super) const OF_THE_IMAGE: &str = r#"package agent_policy
        default CreateSandboxRequest := true
        default StartContainerRequest := true
        default RemoveContainerRequest := true
        default SignalProcessRequest := true
        default WaitProcessRequest := true
        default ReadStreamRequest := true
        default WriteStreamRequest := true
        default CloseStdinRequest := true
        default DestroySandboxRequest := true

        default CreateContainerRequest := {"allowed": false}
        CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/made", "value": true}]} {
            not data.pstate.made
            print("to run", input.OCI.Process.Args)
            input.OCI.Process.Args == ["sleep", "1000000"]
        }
        CreateContainerRequest := {"allowed": true} { input.OCI.Process.Args == ["true"] }

        default ExecProcessRequest := false
        ExecProcessRequest { input.process.Args == ["echo", "well"] }

        default SetPolicyRequest := false
        SetPolicyRequest { not contains(input.policy, "anything") }
    "#;

    /// It comes from the host, and keeps what containers write to itself.
    const SILENT: &str = r#"package agent_policy
        default CreateContainerRequest := false
        CreateContainerRequest { input.OCI.Process.Args == ["true"] }
        default StartContainerRequest := true
        default ExecProcessRequest := true
        default WaitProcessRequest := true
        default ReadStreamRequest := false
        default CloseStdinRequest := true
        default RemoveContainerRequest := true
        default DestroySandboxRequest := true
    "#;

    pub(super) async fn the_policy_of_the_image_decides_until_the_host_sets_another(ctx: Ctx) -> Outcome {
        let client = ctx.client();
        client.check().await?;
        client.create_sandbox(&sandbox::request("guarded", "guarded", false)).await?;
        let other = ctx.container(|spec| spec.args(["sh"]))?;
        refused(
            other.create().await,
            Code::PERMISSION_DENIED,
            &["CreateContainerRequest is blocked by policy", "to run", "sh"],
        );
        let container = ctx.idle(|spec| spec).await?;
        assert_eq!(succeeded(container.exec(["echo", "well"]).await?), "well");
        let exec = container.exec(["echo", "ill"]).await.map(drop);
        assert_eq!(code(exec), Code::PERMISSION_DENIED);
        // It remembers what it has allowed, and does so when the server has died.
        let second = ctx.container(|spec| spec.args(["sleep", "1000000"]))?;
        refused(second.create().await, Code::PERMISSION_DENIED, &["CreateContainerRequest"]);
        let ctx = crash(&ctx).await?;
        let (client, container) = (ctx.client(), container.over(&ctx));
        refused(second.over(&ctx).create().await, Code::PERMISSION_DENIED, &["CreateContainerRequest"]);
        // What it says nothing of is refused, too. Whether the agent lives may always be asked.
        assert_eq!(code(client.metrics().await.map(drop)), Code::INTERNAL);
        client.check().await?;
        client.version().await?;

        refused(
            set(&ctx, "package agent_policy\n # anything").await,
            Code::PERMISSION_DENIED,
            &["SetPolicyRequest"],
        );
        refused(
            set(&ctx, "package agent_policy\nExecProcessRequest :=").await,
            Code::INVALID_ARGUMENT,
            &["policy"],
        );
        assert_eq!(succeeded(container.exec(["echo", "well"]).await?), "well", "the one before has stayed");
        set(&ctx, SILENT).await?;
        // The stream ends, as far as the host sees. It gets none of it, and goes on to wait.
        let exec = container.exec(["sh", "-c", "echo secret; echo secret >&2; exit 3"]).await?;
        assert_eq!((exec.stdout, exec.stderr, exec.status), (vec![], vec![], 3));
        refused(set(&ctx, OF_THE_IMAGE).await, Code::INTERNAL, &["SetPolicyRequest"]);
        container.remove().await?;
        Ok(())
    }

    pub(super) async fn without_a_policy_the_first_one_is_the_hosts(ctx: Ctx) -> Outcome {
        ctx.client().create_sandbox(&sandbox::request("open", "open", false)).await?;
        let container = ctx.idle(|spec| spec).await?;
        assert_eq!(container.sh("echo open").await?, "open");
        set(&ctx, SILENT).await?;
        assert_eq!(code(ctx.client().stats_container(&container.id).await.map(drop)), Code::INTERNAL);
        refused(set(&ctx, "package agent_policy").await, Code::INTERNAL, &["SetPolicyRequest"]);
        let ctx = crash(&ctx).await?;
        let container = container.over(&ctx);
        assert_eq!(code(ctx.client().stats_container(&container.id).await.map(drop)), Code::INTERNAL);
        container.remove().await?;
        Ok(())
    }

    fn code<E: Into<Box<dyn std::error::Error + Send + Sync>>>(result: Result<(), E>) -> Code {
        let error = result.unwrap_err().into();
        error.downcast_ref::<CallError>().map_or(Code::OK, |error| error.code)
    }
}
