//! The engine with replicas that do as they are told.

use super::*;
use crate::model::Wants;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// Answers with the first id, but not with a number for the id 777; fails above so many tokens; reports its batches and waits to be
/// let go on.
struct Scripted {
    most_tokens: usize,
    begun: mpsc::Sender<Vec<u32>>,
    go_on: mpsc::Receiver<()>,
}

impl Replica for Scripted {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        self.begun.send(inputs.iter().map(|input| input.ids[0]).collect()).unwrap();
        // A test that lets go of the sender lets everything go on.
        let _ = self.go_on.recv();
        if inputs.iter().map(|input| input.len()).sum::<usize>() > self.most_tokens {
            let source = candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY: out of memory".to_owned());
            return Err(ModelError::Tensor { doing: "testing".to_owned(), source });
        }
        assert!(inputs.iter().all(|input| input.ids[0] != 666), "the number that panics");
        let vector = |input: &&Input| match input.ids[0] {
            777 => vec![1.0, f32::NAN],
            id => vec![id as f32],
        };
        Ok(inputs.iter().map(|input| Output { vector: vector(input), ..Output::default() }).collect())
    }

    fn padding(&self, lengths: &[usize]) -> usize {
        lengths.len()
    }
}

struct Fixture {
    engine: Engine,
    metrics: Arc<Metrics>,
    begun: mpsc::Receiver<Vec<u32>>,
    go_on: mpsc::Sender<()>,
}

fn fixture(budget: usize, most_tokens: usize) -> Fixture {
    let (begun, batches) = mpsc::channel();
    let (sender, go_on) = mpsc::channel();
    let metrics = Arc::new(Metrics::default());
    let replica = Scripted { most_tokens, begun, go_on };
    let budget = Budget { tokens: budget, inputs: 100 };
    let worker = Worker { replica, budget, temperature: Temperature::default(), express: false };
    let limits = EngineLimits { queue_inputs: 20 };
    let engine = Engine::start(vec![worker], limits, Arc::clone(&metrics)).unwrap();
    Fixture { engine, metrics, begun: batches, go_on: sender }
}

impl Fixture {
    /// The next batch, which then waits for `go_on`.
    fn batch(&self) -> Vec<u32> {
        self.begun.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    async fn until_waiting(&self, inputs: i64) {
        while self.metrics.queue_inputs.get() != inputs {
            tokio::task::yield_now().await;
        }
    }
}

fn numbers(outputs: Vec<Output>) -> Vec<f32> {
    outputs.into_iter().flat_map(|output| output.vector).collect()
}

fn inputs(ids: impl IntoIterator<Item = u32>) -> Vec<Input> {
    let input =
        |id| Input { ids: vec![id; 10], type_ids: vec![0; 10], unpooled: 0, unseen: 0, wants: Wants::VECTOR };
    ids.into_iter().map(input).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_input_waits_for_one_bulk_batch_at_most_and_bulk_for_one_interactive() {
    let fixture = fixture(20, usize::MAX);
    let bulk = tokio::spawn({
        let engine = fixture.engine.clone();
        async move { engine.run(inputs(0..10)).await }
    });
    fixture.until_waiting(8).await;
    assert_eq!(fixture.batch(), [0, 1]);
    let small = [100, 200].map(|id| {
        let engine = fixture.engine.clone();
        tokio::spawn(async move { engine.run(inputs(id..id + 2)).await })
    });
    fixture.until_waiting(12).await;
    // The two small requests have the same claim, and may have come in either order.
    for expected in [[100, 200], [2, 3], [101, 201], [4, 5]] {
        fixture.go_on.send(()).unwrap();
        let mut batch = fixture.batch();
        batch.sort_unstable();
        assert_eq!(batch, expected);
    }
    drop(fixture.go_on);
    for request in small {
        request.await.unwrap().unwrap();
    }
    let results = numbers(bulk.await.unwrap().unwrap());
    assert_eq!(results, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_client_is_gone_is_not_computed() {
    let fixture = fixture(20, usize::MAX);
    let first = tokio::spawn({
        let engine = fixture.engine.clone();
        async move { engine.run(inputs([1])).await }
    });
    assert_eq!(fixture.batch(), [1]);
    let gone = tokio::spawn({
        let engine = fixture.engine.clone();
        async move { engine.run(inputs(2..20)).await }
    });
    fixture.until_waiting(18).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    fixture.go_on.send(()).unwrap();
    first.await.unwrap().unwrap();
    fixture.until_waiting(0).await;
    assert_eq!(fixture.metrics.cancelled.get(), 18);
    assert!(fixture.begun.try_recv().is_err(), "nothing more was computed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_a_stopped_engine_finishes_what_it_has() {
    let fixture = fixture(20, usize::MAX);
    let waiting = tokio::spawn({
        let engine = fixture.engine.clone();
        async move { engine.run(inputs(0..22)).await }
    });
    fixture.until_waiting(20).await;
    let refused = fixture.engine.run(inputs([99])).await.unwrap_err();
    assert!(matches!(refused, EngineError::Overloaded { waiting: 20, seconds: 1 }), "{refused}");
    assert_eq!(fixture.metrics.overloaded.get(), 1);
    assert!(matches!(fixture.engine.admit(), Err(EngineError::Overloaded { waiting: 20, seconds: 1 })));
    assert_eq!(fixture.metrics.overloaded.get(), 2);
    fixture.engine.stop();
    assert!(matches!(fixture.engine.admit(), Err(EngineError::Stopped)));
    assert!(matches!(fixture.engine.run(inputs([99])).await, Err(EngineError::Stopped)));
    drop(fixture.go_on);
    assert_eq!(waiting.await.unwrap().unwrap().len(), 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_room_in_the_queue_is_not_counted_as_refused() {
    let fixture = fixture(20, usize::MAX);
    let waiting = tokio::spawn({
        let engine = fixture.engine.clone();
        async move { engine.run(inputs(0..22)).await }
    });
    fixture.until_waiting(20).await;
    let patient = tokio::spawn({
        let engine = fixture.engine.clone();
        async move { engine.run_patiently(Kind::Documents, inputs([99, 98])).await }
    });
    tokio::time::sleep(AGAIN * 3).await;
    assert!(!patient.is_finished());
    drop(fixture.go_on);
    let found = patient.await.unwrap().unwrap().into_iter().map(|(output, _)| output).collect();
    assert_eq!(numbers(found), [99.0, 98.0]);
    assert_eq!(waiting.await.unwrap().unwrap().len(), 22);
    assert_eq!(fixture.metrics.overloaded.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_memory_halves_the_batch_and_the_next_ones() {
    let fixture = fixture(80, 25);
    drop(fixture.go_on);
    let results = fixture.engine.run(inputs(0..16)).await.unwrap();
    assert_eq!(numbers(results).into_iter().sum::<f32>(), 120.0);
    let sizes: Vec<usize> = std::iter::from_fn(|| fixture.begun.try_recv().ok()).map(|it| it.len()).collect();
    assert_eq!(sizes[..7], [8, 4, 2, 2, 4, 2, 2], "halves of halves, until they fit");
    assert!(sizes[7..].iter().all(|size| *size <= 6), "{sizes:?}: the smallest budget is 64 tokens");
    assert!(fixture.engine.run(inputs([1])).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_its_batch_alone() {
    let fixture = fixture(20, usize::MAX);
    drop(fixture.go_on);
    let error = fixture.engine.run(inputs([666])).await.unwrap_err();
    assert!(error.to_string().contains("panicked on a batch of 1 inputs"), "{error}");
    assert_eq!(numbers(fixture.engine.run(inputs([7])).await.unwrap()), [7.0]);
    assert_eq!(fixture.metrics.padding.get_or_create(&WorkerLabels { worker: 0 }).get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_no_number_fails_its_input_alone() {
    let fixture = fixture(100, usize::MAX);
    let ask = |id: u32| {
        let engine = fixture.engine.clone();
        tokio::spawn(async move { engine.run(inputs([id])).await })
    };
    let first = ask(1);
    assert_eq!(fixture.batch(), [1]);
    let [before, broken, after] = [2, 777, 3].map(ask);
    fixture.until_waiting(3).await;
    drop(fixture.go_on);
    assert_eq!(numbers(first.await.unwrap().unwrap()), [1.0]);
    for (request, number) in [(before, 2.0), (after, 3.0)] {
        assert_eq!(numbers(request.await.unwrap().unwrap()), [number]);
    }
    let error = broken.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, EngineError::Backend(message) if message.contains("try the dtype f32")),
        "{error}"
    );
    assert_eq!(fixture.begun.recv().unwrap().len(), 3, "they were one batch");
    assert_eq!(fixture.metrics.batch_failures.get_or_create(&WorkerLabels { worker: 0 }).get(), 0);
}

#[test]
fn who_is_refused_is_told_how_long_the_work_that_waits_takes() {
    let budget = Budget { tokens: 1000, inputs: 100 };
    let worker = |express| Worker { replica: (), budget, temperature: Temperature::default(), express };
    let mut queue =
        Queue::new([false, false, true].iter().map(|express| Place::of(&worker(*express))).collect());
    let second = Duration::from_secs(1);
    let add = |queue: &mut Queue, count: u32| {
        let job = |input| Job { input, arrived: Instant::now(), answer: oneshot::channel().0 };
        queue.add(Kind::Bulk, inputs(0..count).into_iter().map(job).collect());
    };
    add(&mut queue, 100);
    assert_eq!(queue.seconds_of_work(), 1, "nothing was measured");
    for (worker, tokens) in [(0, 50), (1, 100), (2, 10_000)] {
        queue.computed(worker, None, (tokens, second), Instant::now());
    }
    assert_eq!(
        queue.seconds_of_work(),
        7,
        "1000 tokens at 150 a second; the express worker has no device of its own"
    );
    queue.computed(0, None, (500, second), Instant::now());
    assert_eq!(queue.seconds_of_work(), 3, "the last batches count most");
    add(&mut queue, 10_000);
    assert_eq!(queue.seconds_of_work(), 60);
}

/// One of several devices: tells its number with each batch, waits to be let go on, and fails while it is broken.
struct Device {
    number: usize,
    broken: Arc<AtomicBool>,
    begun: mpsc::Sender<(usize, Vec<u32>)>,
    go_on: mpsc::Receiver<()>,
}

impl Replica for Device {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        let ids = inputs.iter().map(|input| input.ids[0]).collect();
        self.begun.send((self.number, ids)).unwrap();
        let _ = self.go_on.recv();
        if self.broken.load(Ordering::Relaxed) || inputs.iter().any(|input| input.ids[0] == 666) {
            let source = candle_core::Error::Msg("CUDA_ERROR_ILLEGAL_ADDRESS".to_owned());
            return Err(ModelError::Tensor { doing: format!("computing on {}", self.number), source });
        }
        Ok(vec![Output::default(); inputs.len()])
    }

    fn padding(&self, _: &[usize]) -> usize {
        0
    }
}

struct Devices {
    engine: Engine,
    metrics: Arc<Metrics>,
    begun: mpsc::Receiver<(usize, Vec<u32>)>,
    go_on: Vec<mpsc::Sender<()>>,
    broken: Vec<Arc<AtomicBool>>,
    temperatures: Vec<Temperature>,
}

/// Devices of these temperatures, all of which are free.
async fn devices(celsius: &[Option<i32>]) -> Devices {
    devices_with(celsius, false).await
}

/// The same, the last of which is an express worker where that is wanted.
async fn devices_with(celsius: &[Option<i32>], express: bool) -> Devices {
    let (begun, batches) = mpsc::channel();
    let (mut workers, mut senders, mut switches) = (Vec::new(), Vec::new(), Vec::new());
    let temperatures: Vec<Temperature> = celsius.iter().map(|_| Temperature::default()).collect();
    for (number, (degrees, temperature)) in celsius.iter().zip(&temperatures).enumerate() {
        temperature.set(*degrees);
        let (sender, go_on) = mpsc::channel();
        let broken = Arc::new(AtomicBool::new(false));
        let replica = Device { number, broken: Arc::clone(&broken), begun: begun.clone(), go_on };
        let budget = Budget { tokens: 1000, inputs: 100 };
        let express = express && number + 1 == celsius.len();
        workers.push(Worker { replica, budget, temperature: temperature.clone(), express });
        senders.push(sender);
        switches.push(broken);
    }
    let metrics = Arc::new(Metrics::default());
    let limits = EngineLimits { queue_inputs: 1000 };
    let engine = Engine::start(workers, limits, Arc::clone(&metrics)).unwrap();
    let devices = Devices { engine, metrics, begun: batches, go_on: senders, broken: switches, temperatures };
    devices.until_free(celsius.len() - usize::from(express)).await;
    if express {
        devices.until_express_is_free().await;
    }
    devices
}

impl Devices {
    async fn until_free(&self, count: usize) {
        while self.engine.shared.lock().ready(Instant::now()) != count {
            tokio::task::yield_now().await;
        }
    }

    async fn until_express_is_free(&self) {
        while self.engine.shared.lock().express(Instant::now()).is_none() {
            tokio::task::yield_now().await;
        }
    }

    fn ask(
        &self,
        ids: impl IntoIterator<Item = u32>,
    ) -> tokio::task::JoinHandle<Result<Vec<Output>, EngineError>> {
        let (engine, inputs) = (self.engine.clone(), inputs(ids));
        tokio::spawn(async move { engine.run(inputs).await })
    }

    /// The next batch and on which device, which then waits to be let go on.
    fn batch(&self) -> (usize, Vec<u32>) {
        self.begun.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn failures(&self, worker: usize) -> u64 {
        self.metrics.batch_failures.get_or_create(&WorkerLabels { worker }).get()
    }

    /// Lets every device go on from now on.
    fn let_go(&mut self) {
        self.go_on.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coolest_free_device_takes_the_next_batch() {
    let mut devices = devices(&[Some(70), Some(50), None, Some(60)]).await;
    let mut requests = Vec::new();
    for (input, expected) in [(1, 1), (2, 3), (3, 0), (4, 2)] {
        requests.push(devices.ask([input]));
        assert_eq!(devices.batch(), (expected, vec![input]), "one that does not answer comes last");
    }
    // It cools down while all are busy.
    devices.temperatures[0].set(Some(40));
    devices.let_go();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    devices.until_free(4).await;
    devices.ask([5]).await.unwrap().unwrap();
    assert_eq!(devices.batch(), (0, vec![5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_shared_out_among_the_devices_that_are_free() {
    let mut devices = devices(&[None; 4]).await;
    let single = devices.ask([99]);
    assert_eq!(devices.batch(), (0, vec![99]));
    // All of it would fit into one batch.
    let large = devices.ask(0..15);
    let mut batches = [devices.batch(), devices.batch(), devices.batch()];
    batches.sort();
    assert_eq!(batches.map(|(device, inputs)| (device, inputs.len())), [(1, 5), (2, 5), (3, 5)]);
    devices.let_go();
    assert_eq!(large.await.unwrap().unwrap().len(), 15);
    single.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_device_fails_on_another_one_computes_and_the_broken_one_rests() {
    let mut devices = devices(&[Some(40), Some(60)]).await;
    devices.broken[0].store(true, Ordering::Relaxed);
    devices.let_go();
    devices.ask([1]).await.unwrap().unwrap();
    assert_eq!([devices.batch(), devices.batch()], [(0, vec![1]), (1, vec![1])]);
    assert_eq!((devices.failures(0), devices.failures(1)), (1, 0));
    // It fails at once and is the coolest: without a rest it would be given everything.
    devices.until_free(1).await;
    devices.ask([2]).await.unwrap().unwrap();
    assert_eq!(devices.batch(), (1, vec![2]));
    devices.engine.check(inputs([3])[0].clone()).await.unwrap();
    assert!(devices.begun.try_recv().is_err(), "one device is well: nothing has to be tried");

    // After its rest it is tried again.
    devices.broken[0].store(false, Ordering::Relaxed);
    devices.until_free(2).await;
    devices.ask([4]).await.unwrap().unwrap();
    assert_eq!(devices.batch(), (0, vec![4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_fails_everywhere_is_told_and_no_device_rests() {
    let mut devices = devices(&[Some(40), Some(60)]).await;
    devices.let_go();
    let error = devices.ask([666]).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("computing on 1"), "{error}");
    assert_eq!([devices.batch().0, devices.batch().0], [0, 1]);
    devices.until_free(2).await;
    // Both failed: something that is known to be well shows that they still compute.
    devices.engine.check(inputs([7])[0].clone()).await.unwrap();
    assert_eq!(devices.batch(), (0, vec![7]));
    for broken in &devices.broken {
        broken.store(true, Ordering::Relaxed);
    }
    devices.ask([8]).await.unwrap().unwrap_err();
    let error = devices.engine.check(inputs([9])[0].clone()).await.unwrap_err();
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_stopped_leaves_a_failed_batch_to_a_device_that_is_free() {
    let devices = devices(&[Some(40), Some(60)]).await;
    devices.broken[0].store(true, Ordering::Relaxed);
    let request = devices.ask([1]);
    assert_eq!(devices.batch(), (0, vec![1]));
    devices.engine.stop();
    devices.go_on[0].send(()).unwrap();
    assert_eq!(devices.batch(), (1, vec![1]));
    devices.go_on[1].send(()).unwrap();
    request.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_express_worker_computes_interactive_inputs_beside_a_bulk_batch_and_nothing_else() {
    let mut devices = devices_with(&[None, None], true).await;
    assert_eq!(devices.engine.capacity(), 1000, "it has no device of its own");
    let bulk = devices.ask(0..20);
    assert_eq!(devices.batch(), (0, (0..20).collect()), "nothing is shared out to it");
    let more = devices.ask(20..40);
    let small = devices.ask([99]);
    assert_eq!(devices.batch(), (1, vec![99]));
    devices.go_on[1].send(()).unwrap();
    small.await.unwrap().unwrap();
    devices.until_express_is_free().await;
    assert!(devices.begun.try_recv().is_err(), "bulk does not go there");
    devices.let_go();
    assert_eq!((bulk.await.unwrap().unwrap().len(), more.await.unwrap().unwrap().len()), (20, 20));
    assert_eq!(devices.batch(), (0, (20..40).collect()));
    devices.until_free(1).await;
    devices.ask([100]).await.unwrap().unwrap();
    assert_eq!(devices.batch(), (0, vec![100]), "an ordinary worker that is ready comes first");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_express_worker_fails_on_goes_to_an_ordinary_one_and_never_the_other_way() {
    let mut devices = devices_with(&[None, None], true).await;
    devices.broken[1].store(true, Ordering::Relaxed);
    let bulk = devices.ask(0..20);
    assert_eq!(devices.batch().0, 0);
    let small = devices.ask([99]);
    assert_eq!(devices.batch(), (1, vec![99]));
    devices.let_go();
    small.await.unwrap().unwrap();
    assert_eq!(devices.batch(), (0, vec![99]));
    bulk.await.unwrap().unwrap();
    devices.broken[0].store(true, Ordering::Relaxed);
    devices.broken[1].store(false, Ordering::Relaxed);
    devices.until_express_is_free().await;
    devices.until_free(1).await;
    devices.ask([1]).await.unwrap().unwrap_err();
    assert_eq!(devices.batch(), (0, vec![1]));
    devices.until_free(1).await;
    let error = devices.engine.check(inputs([2])[0].clone()).await.unwrap_err();
    assert!(
        error.to_string().contains("computing on 0"),
        "the last batch of every ordinary worker failed: {error}"
    );
}
