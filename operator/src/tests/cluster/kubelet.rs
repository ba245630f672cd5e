//! Runs pods as the scheduler and the kubelet would, and answers for them.

use super::*;

impl Cluster {
    /// Ends what is being deleted, starts what fits, and answers what is asked. Returns whether anything changed.
    pub fn run_pods(&mut self) -> bool {
        let before = (self.pods.clone(), self.observed.answers.clone());
        let silent = |node: &Option<String>| {
            node.as_ref().is_some_and(|node| self.observed.nodes.get(node).is_some_and(|node| !node.ready))
        };
        // What a silent node does about its pods is not heard.
        self.pods.retain(|_, pod| {
            pod.metadata.deletion_timestamp.is_none() || {
                let pod = PodView::read(pod);
                pod.scheduled && silent(&pod.node)
            }
        });
        let keys: Vec<_> = self.pods.keys().cloned().collect();
        for key in keys {
            self.start(&key);
        }
        self.answer();
        before != (self.pods.clone(), self.observed.answers.clone())
    }

    fn start(&mut self, key: &(String, String)) {
        let view = PodView::read(&self.pods[key]);
        if view.ended() {
            return;
        }
        let anywhere = || self.nodes.keys().next().cloned().unwrap_or_default();
        let node = view.node.clone().unwrap_or_else(anywhere);
        if view.leaving
            || (!view.units.is_empty() && !self.observed.nodes.get(&node).is_some_and(|node| node.ready))
        {
            return;
        }
        let fits = view.scheduled
            || view.units.iter().all(|(index, units)| {
                let others = self.pods.values().map(PodView::read).filter(|pod| {
                    pod.scheduled && pod.node.as_ref() == Some(&node) && !pod.ended() && pod.uid != view.uid
                });
                let taken: u32 = others.filter_map(|pod| pod.units.get(index).copied()).sum();
                let gpu = self.nodes[&node].iter().find(|gpu| gpu.index == *index);
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
        set_condition(pod, "ContainersReady", true);
        let ready = !gated || PodView::read(pod).gate == Some(true);
        set_condition(pod, "Ready", ready);
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
                        accelerated: self.accelerated,
                        ..WorkerInfo::default()
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
                        step: ModelStep::Ready,
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
