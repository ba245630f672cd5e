//! Runs pods as the scheduler and the kubelet would, and answers for them.

use super::*;
use k8s_openapi::api::core::v1::EnvVar;

impl Cluster {
    /// Ends what is being deleted, starts what fits, and answers what is asked. Returns whether anything changed.
    pub fn run_pods(&mut self) -> bool {
        let before = (self.pods.clone(), self.observed.answers.clone());
        let silent = |node: &Option<String>| {
            node.as_ref().is_some_and(|node| self.observed.nodes.get(node).is_some_and(|node| !node.ready))
        };
        // What a silent node does about its pods is not heard. A finalizer keeps a pod.
        let ends = |pod: &Pod| {
            let view = PodView::read(pod);
            let kept = pod.metadata.finalizers.is_some() || view.scheduled && silent(&view.node);
            view.leaving && !kept
        };
        let ending: Vec<_> =
            self.pods.iter().filter(|(_, pod)| ends(pod)).map(|(key, _)| key.clone()).collect();
        for key in ending {
            self.kill(&key);
        }
        let keys: Vec<_> = self.pods.keys().cloned().collect();
        for key in keys {
            self.start(&key);
        }
        self.silence();
        self.answer();
        before != (self.pods.clone(), self.observed.answers.clone())
    }

    /// A GPU as its node tells of it: what had it a moment ago is still counted, and has its memory.
    pub fn measured(&self, node: &str, gpu: &Gpu) -> Gpu {
        let mut gpu = gpu.clone();
        for (_, at, index, allocation) in &self.counted {
            if at == node && *index == gpu.index {
                gpu.memory.free = gpu.memory.free.saturating_sub(u64::from(allocation.units) * 1024);
                gpu.allocations.push(allocation.clone());
            }
        }
        gpu
    }

    /// A pod goes; what it had is counted for a while.
    pub fn kill(&mut self, key: &(String, String)) {
        let Some(pod) = self.pods.remove(key) else { return };
        let pod = PodView::read(&pod);
        let Some(node) = pod.node.as_ref().filter(|_| pod.scheduled) else { return };
        for (index, units) in &pod.units {
            let allocation = Allocation {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: "c".to_owned(),
                units: *units,
            };
            self.counted.push((self.now + COUNTED, node.clone(), *index, allocation));
        }
    }

    /// Lets a pod fail as the kubelet does.
    pub fn fail(&mut self, name: &str, reason: &str) {
        let pod = self.pods.get_mut(&("demo".to_owned(), name.to_owned())).unwrap();
        let status = pod.status.get_or_insert_with(PodStatus::default);
        status.phase = Some("Failed".to_owned());
        status.reason = Some(reason.to_owned());
        let at = Time(self.now);
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_transition_time = Some(at.clone());
        }
    }

    fn start(&mut self, key: &(String, String)) {
        let view = PodView::read(&self.pods[key]);
        if view.ended() {
            return;
        }
        let anywhere = || self.nodes.keys().next().cloned().unwrap_or_default();
        let open = |found: &Arc<NodeView>| found.ready && (view.scheduled || !found.unschedulable);
        // The scheduler takes any of the nodes that a pod is meant for.
        let chosen = view.meant_for.iter().find(|node| self.observed.nodes.get(*node).is_some_and(open));
        let node = chosen.or(view.node.as_ref()).cloned().unwrap_or_else(anywhere);
        let needs_node = !view.units.is_empty() || (!view.scheduled && view.node.is_some());
        if view.leaving || (needs_node && !self.observed.nodes.get(&node).is_some_and(open)) {
            return;
        }
        let mut others = self.pods.values().map(PodView::read);
        let port_is_taken = view.host_port.is_some()
            && others.any(|pod| pod.scheduled && pod.uid != view.uid && pod.host_port == view.host_port);
        let fits = view.scheduled
            || !port_is_taken
                && view.units.iter().all(|(index, units)| {
                    let others = self.pods.values().map(PodView::read).filter(|pod| {
                        pod.scheduled
                            && pod.node.as_ref() == Some(&node)
                            && !pod.ended()
                            && pod.uid != view.uid
                    });
                    let taken: u32 = others.filter_map(|pod| pod.units.get(index).copied()).sum();
                    let gpu =
                        self.nodes.get(&node).and_then(|gpus| gpus.iter().find(|gpu| gpu.index == *index));
                    gpu.is_some_and(|gpu| gpu.withheld.is_none() && taken + units <= gpu.units)
                });
        let pod = self.pods.get_mut(key).unwrap();
        if !fits {
            return;
        }
        let spec = pod.spec.as_mut().unwrap();
        spec.node_name = Some(node);
        let gated = spec.readiness_gates.is_some();
        let once = spec.restart_policy.as_deref() == Some("OnFailure");
        let pulls = spec.init_containers.is_some();
        let status = pod.status.get_or_insert_with(PodStatus::default);
        if self.stuck.is_some() && spec.containers[0].image == self.stuck {
            return;
        }
        if pulls && self.pulling {
            status.pod_ip = Some("10.0.0.1".to_owned());
            let running = json!([{"name": "model-0", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"running": {"startedAt": self.now.to_string()}}}]);
            if status.init_container_statuses.is_none() {
                status.init_container_statuses = serde_json::from_value(running).unwrap();
            }
            return;
        }
        status.init_container_statuses = None;
        status.phase = Some(if once { "Succeeded" } else { "Running" }.to_owned());
        status.pod_ip = Some("10.0.0.1".to_owned());
        if !view.scheduled {
            let running = json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": self.now.to_string()}}}]);
            status.container_statuses = serde_json::from_value(running).unwrap();
        }
        let ready = !gated || PodView::read(pod).gate == Some(true);
        // A worker answers that it is not ready where it must compute on its GPUs and can't.
        let must = EnvVar {
            name: "PRINCIPIUM_REQUIRE_ACCELERATION".to_owned(),
            value: Some("true".to_owned()),
            value_from: None,
        };
        let mut variables = pod.spec.iter().flat_map(|spec| spec.containers[0].env.iter().flatten());
        let refuses =
            !self.accelerated && !view.units.is_empty() && variables.any(|variable| *variable == must);
        set_condition(pod, "ContainersReady", !refuses);
        set_condition(pod, "Ready", ready && !refuses);
    }

    /// Where a node doesn't answer Kubernetes says that its pods are not ready. Of their containers it says nothing: they may go on.
    fn silence(&mut self) {
        for pod in self.pods.values_mut() {
            let view = PodView::read(pod);
            let node = view.node.filter(|_| view.scheduled && view.ready);
            if node.and_then(|node| self.observed.nodes.get(&node)).is_some_and(|node| !node.ready) {
                set_condition(pod, "Ready", false);
            }
        }
    }

    fn answer(&mut self) {
        let answers = Arc::make_mut(&mut self.observed.answers);
        // Nobody is asked any more about what no target names.
        answers.jobs.retain(|uid, _| self.targets.iter().any(|target| target.uid == *uid));
        for target in &self.targets {
            let answers = Arc::make_mut(&mut self.observed.answers);
            match &target.question {
                Question::Worker => {
                    let info = WorkerInfo {
                        model_id: "mini".to_owned(),
                        weights_digest: Some("sha256:1".to_owned()),
                        model_dtype: Some("f16".to_owned()),
                        dimension: Some(384),
                        kernel: Some("cuda".to_owned()),
                        device: Some("cuda:0".to_owned()),
                        accelerated: self.accelerated,
                    };
                    answers.workers.insert(target.uid.clone(), info);
                }
                Question::Job(question) => {
                    let answer = self.jobs.ask(question);
                    answers.jobs.insert(target.uid.clone(), answer);
                }
                Question::Pull => {
                    let half = PullProgress { model: "tiny".to_owned(), completed: 512, total: 1024 };
                    answers.pulls.insert(target.uid.clone(), half);
                }
                Question::Models(models) => {
                    let answer = |name: &String| ModelAnswer {
                        name: name.clone(),
                        step: match &self.missing {
                            Some(missing) if missing == name => ModelStep::Missing,
                            _ => ModelStep::Ready,
                        },
                        size_vram: Some(u64::from(self.accelerated)),
                        on_gpu: Some(self.accelerated),
                        ..ModelAnswer::default()
                    };
                    answers.instances.insert(target.uid.clone(), models.iter().map(answer).collect());
                }
            }
        }
    }
}
