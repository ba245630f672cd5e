//! The plugin's configuration: which of two values holds, for which card and node, and what can't be.

use crate::pods::{identity, running, third_party};
use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use principium_api::gpu_node::WithheldReason;
use principium_api::names::{GENERIC_GPU_RESOURCE, gpu_resource};
use principium_e2e::{Release, World, gpus, run};
use principium_gpu_sim::{state_path, update};
use std::time::Duration;

#[test]
fn a_flag_wins_over_the_environment_that_over_the_file_and_a_product_has_its_own() -> Result<()> {
    run("limits", |world| async move {
        let cards = std::fs::read(state_path())?;
        update(&state_path(), |state| {
            "NVIDIA A100-SXM4-40GB".clone_into(&mut state.gpus[2].product);
            state.gpus[3].slowdown_temperature = 60;
            Ok(())
        })?;
        let of_node =
            format!("devicePlugin.config.nodes.{}.genericGpus[0]=7", world.gpu_node().await?.name_any());
        let plugin = "devicePlugin.";
        let values = [
            // In the file.
            "temperature.withhold=80",
            "temperature.restore=70",
            "temperature.dwell=1s",
            "config.products[0].product=A100",
            "config.products[0].withholdTemperature=90",
            "config.products[0].restoreTemperature=80",
            // In the environment. A leading zero keeps Helm from taking a text for a number.
            "extraEnv[0].name=PRINCIPIUM_WITHHOLD_TEMPERATURE",
            "extraEnv[0].value=068",
            "extraEnv[1].name=PRINCIPIUM_RESTORE_TEMPERATURE",
            "extraEnv[1].value=055",
            "extraArgs[0]=--withhold-temperature=65",
        ];
        let mut set: Vec<String> = values.iter().map(|value| format!("{plugin}{value}")).collect();
        set.push(of_node);
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let outcome = Release::existing()?.with(&set, limits(&world)).await;
        std::fs::write(state_path(), cards)?;
        outcome?;
        world.wait_for_devices(&gpu_resource(7), 8).await?;
        world.wait_until_calm().await
    })
}

async fn limits(world: &World) -> Result<()> {
    // Of this node's own configuration.
    world.wait_for_devices(GENERIC_GPU_RESOURCE, 1).await?;
    // The flag's 65 holds, neither the environment's 68 nor the file's 80; 2 is a product of its own, and 3 a card that
    // slows itself down at 60.
    for (index, temperature) in [(1, "66"), (2, "88"), (3, "61"), (4, "64")] {
        gpus::set(index, &["--temperature", temperature])?;
    }
    for index in [1, 3] {
        world.wait_for_withheld(index, true).await?;
        let reason = world.gpu(index).await?.withheld.map(|withheld| withheld.reason);
        assert_eq!(reason, Some(WithheldReason::Overheated), "GPU {index}");
    }
    // The environment's 55 holds, and not the file's 70.
    gpus::set(1, &["--temperature", "57"])?;
    let as_configured = || async {
        let gpus = world.gpu_node().await?.status.unwrap_or_default().gpus;
        let withheld = |index: usize| gpus[index].withheld.is_some();
        Ok(withheld(1) && !withheld(2) && !withheld(4))
    };
    world.stays("1 is withheld, 2 and 4 are offered", Duration::from_secs(5), as_configured).await?;
    gpus::set(1, &["--temperature", "54"])?;
    world.wait_for_withheld(1, false).await?;
    gpus::set(2, &["--temperature", "91"])?;
    world.wait_for_withheld(2, true).await
}

#[test]
fn a_plugin_that_is_told_nonsense_says_what_and_takes_nothing_from_who_runs() -> Result<()> {
    run("nonsense", |world| async move {
        world.apply::<Pod>(&third_party("runs", Some((1, 3)))).await?;
        let before = identity(&running(&world, "runs").await?);
        world.change_plugin(&["--restore-temperature=90"], true).await?;
        let outcome = world
            .eventually("the plugin says what is wrong", || async {
                Ok(world
                    .plugin_pods()
                    .await?
                    .iter()
                    .find_map(last_words)
                    .filter(|words| words.contains("90 °C")))
            })
            .await;
        world.configure_plugin(&[], true).await?;
        let words = outcome?;
        assert!(words.contains("must be below"), "{words}");
        world.wait_for_devices(&gpu_resource(1), 8).await?;
        assert_eq!(identity(&world.api::<Pod>().get("runs").await?), before);
        Ok(())
    })
}

/// What a container said when it ended.
fn last_words(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|status| {
        let ended =
            |state: &Option<k8s_openapi::api::core::v1::ContainerState>| state.as_ref()?.terminated.clone();
        ended(&status.state).or_else(|| ended(&status.last_state))?.message
    })
}
