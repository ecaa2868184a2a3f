//! Any bytes from a bus, at any times, while a master reads and searches: no panic, the master always has a deadline or
//! an outcome, and a job ends within bounds. And a stream of them: the same result however it is split.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use meterkast::mbus::{
    Action, Job, Master, Outcome, Pattern, Piece, Rejected, Stream, Target, Task, Timing, scan::Search,
};

fn read(chunks: impl Iterator<Item = impl AsRef<[u8]>>) -> Vec<Result<Piece, Rejected>> {
    let mut stream = Stream::new(1);
    let mut results = Vec::new();
    for chunk in chunks {
        stream.push(chunk.as_ref());
        results.extend(std::iter::from_fn(|| stream.poll()));
    }
    stream.end();
    results.extend(std::iter::from_fn(|| stream.poll()));
    results
}

/// A job while the line says `script`: each byte pair is how many bytes come before the next deadline, and which.
fn run(master: &mut Master, now: &mut Duration, job: Job, script: &mut &[u8]) -> Outcome {
    master.start(*now, job);
    // Each turn ends a request or brings bytes of the script; requests have an end by themselves.
    for _ in 0..200_000 {
        while let Some(action) = master.poll_action() {
            if let Action::Done(outcome) = action {
                return outcome;
            }
        }
        let deadline = master.deadline().expect("a deadline");
        match script.split_first() {
            Some((&count, rest)) if count & 1 == 1 => {
                let (bytes, rest) = rest.split_at(usize::from(count >> 1).min(rest.len()));
                *script = rest;
                *now = (*now + Duration::from_millis(1)).min(deadline);
                master.handle_bytes(*now, bytes);
            }
            Some((_, rest)) => {
                *script = rest;
                *now = deadline;
                master.handle_timeout(*now);
            }
            None => {
                *now = deadline;
                master.handle_timeout(*now);
            }
        }
    }
    panic!("a job without end");
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, bytes)) = data.split_first() else { return };
    let whole = read([bytes].into_iter());
    assert_eq!(whole, read(bytes.chunks(usize::from(size).max(1))));
    assert_eq!(whole, read(bytes.chunks(1)));

    let (mut master, mut now, mut script) = (Master::new(2400), Duration::ZERO, bytes);
    let timing = Timing::STANDARD;
    for target in [Target::Primary(size), Target::Secondary(Pattern::of_id(u32::from(size) << 24))] {
        run(&mut master, &mut now, Job::read(target, timing), &mut script);
        run(&mut master, &mut now, Job { target, task: Task::Ask, timing }, &mut script);
    }
    let mut search = Search::secondary(timing);
    for _ in 0..64 {
        let Some(job) = search.next_job() else { break };
        search.handle(run(&mut master, &mut now, job, &mut script));
        while search.poll_finding().is_some() {}
        let _ = (search.progress(), search.unsearched());
    }
});
