//! Single decisions. What the two machines do together under every fault is the simulator's to show.

use super::*;
use crate::time::Instant;

const ID: MigrationId = MigrationId([1; 16]);
const NOW: Instant = Instant(1_000_000);
const LOADED: TargetInput = TargetInput::Loaded { is_whole: true };

fn source(inputs: &[SourceInput]) -> Source {
    let offer = Offer { id: ID, vm: VmId([2; 16]), definition: vec![], has_disk: false, post_copy: PostCopy::Never };
    let mut source = Source::new(NOW, offer);
    for input in inputs {
        while source.poll_effect().is_some() {}
        source.handle(NOW, input.clone());
    }
    source
}

#[test]
fn the_ports_of_a_guest_that_was_paused_before_are_closed_too() {
    let ready = SourceInput::Said(ToSource::Ready { id: ID, post_copy: false });
    let effects = |mut source: Source| std::iter::from_fn(move || source.poll_effect()).collect::<Vec<_>>();
    let closes = |source| effects(source).iter().filter(|effect| **effect == SourceEffect::ClosePorts).count();
    assert_eq!(closes(source(&[ready.clone(), SourceInput::Paused])), 1);
    assert_eq!(closes(source(&[ready, SourceInput::Stopped, SourceInput::Paused])), 0, "not twice");
}

fn given() -> Source {
    let ready = SourceInput::Said(ToSource::Ready { id: ID, post_copy: false });
    source(&[ready, SourceInput::Stopped, SourceInput::Paused, SourceInput::Sent])
}

fn effects(source: &mut Source) -> Vec<SourceEffect> {
    std::iter::from_fn(|| source.poll_effect()).collect()
}

fn target(inputs: &[TargetInput]) -> (Target, Vec<TargetEffect>) {
    let mut target = Target::new(NOW, ID);
    let mut last = Vec::new();
    for input in inputs {
        while target.poll_effect().is_some() {}
        target.handle(NOW, input.clone());
        last.clear();
    }
    last.extend(std::iter::from_fn(|| target.poll_effect()));
    (target, last)
}

fn go() -> TargetInput {
    TargetInput::Said(ToTarget::Go { id: ID, handoffs: vec![] })
}

fn switching() -> Source {
    let ready = SourceInput::Said(ToSource::Ready { id: ID, post_copy: false });
    let mut source = source(&[ready, SourceInput::Stopped]);
    while source.poll_effect().is_some() {}
    source.handle(NOW, SourceInput::Paused);
    source
}

#[test]
fn the_permission_is_on_the_disk_before_anybody_hears_of_it() {
    let written = [SourceEffect::Continue, SourceEffect::Persist(Phase::Given)];
    assert_eq!(effects(&mut switching()), written);
    let mut source = given();
    assert_eq!(effects(&mut source), [SourceEffect::HandOver]);
    source.handle(NOW, SourceInput::HandedOver(vec![]));
    assert_eq!(effects(&mut source), [SourceEffect::Send(ToTarget::Go { id: ID, handoffs: vec![] })]);
    assert!(!source.is_ours() && !source.is_cancellable());
    source.handle(NOW, SourceInput::Cancel);
    assert_eq!(effects(&mut source), []);
}

#[test]
fn a_permission_that_could_not_be_written_was_not_given() {
    // Whether or not QEMU has sent all of it meanwhile.
    for is_sent in [false, true] {
        let mut source = switching();
        assert_eq!(source.poll_effect(), Some(SourceEffect::Continue));
        if is_sent {
            source.handle(NOW, SourceInput::Sent);
        }
        assert_eq!(source.poll_effect(), Some(SourceEffect::Persist(Phase::Given)));
        source.handle(NOW, SourceInput::NotPersisted("no space".into()));
        let effects = effects(&mut source);
        assert!(source.is_ours() && effects.contains(&SourceEffect::TakeBack));
        assert!(!effects.contains(&SourceEffect::HandOver), "{effects:?}");
    }
}

#[test]
fn a_source_that_has_given_waits_for_a_word_and_asks_for_a_verdict() {
    let mut source = given();
    while source.poll_effect().is_some() {}
    source.handle(NOW, SourceInput::PeerLost);
    source.handle(NOW + DOUBT_TIME, SourceInput::Timeout);
    let told = effects(&mut source);
    assert!(told.contains(&SourceEffect::Tell(Notice::InDoubt)) && !told.contains(&SourceEffect::TakeBack), "{told:?}");
    source.handle(NOW + DOUBT_TIME, SourceInput::Resolve(Verdict::Here));
    assert!(effects(&mut source).contains(&SourceEffect::TakeBack));
}

#[test]
fn a_guest_is_not_paused_for_long() {
    let ready = SourceInput::Said(ToSource::Ready { id: ID, post_copy: false });
    let mut source = source(&[ready, SourceInput::Stopped, SourceInput::Paused]);
    while source.poll_effect().is_some() {}
    assert_eq!(source.poll_timeout(), Some(NOW + SWITCH_TIME_MAX));
    source.handle(NOW + SWITCH_TIME_MAX, SourceInput::Timeout);
    assert!(effects(&mut source).contains(&SourceEffect::TakeBack));
}

#[test]
fn a_guest_is_paused_only_when_its_frames_wait() {
    let ready = SourceInput::Said(ToSource::Ready { id: ID, post_copy: false });
    let mut source = source(&[ready]);
    while source.poll_effect().is_some() {}
    source.handle(NOW, SourceInput::Converging);
    source.handle(NOW, SourceInput::Converging);
    assert_eq!(effects(&mut source), [SourceEffect::Pause]);
    source.handle(NOW, SourceInput::Stopped);
    assert!(effects(&mut source).contains(&SourceEffect::ClosePorts));
    // QEMU finds more to send than it seemed.
    let due = NOW + PAUSE_TIME_MAX;
    assert_eq!(source.poll_timeout(), Some(due));
    source.handle(due, SourceInput::Timeout);
    assert!(effects(&mut source).contains(&SourceEffect::Unpause));
    source.handle(due, SourceInput::Converging);
    assert_eq!(effects(&mut source), []);
    source.handle(due + PAUSE_AGAIN_TIME, SourceInput::Converging);
    assert_eq!(effects(&mut source), [SourceEffect::Pause]);
}

#[test]
fn a_guest_whose_memory_is_fetched_stays_paused() {
    let ready = SourceInput::Said(ToSource::Ready { id: ID, post_copy: true });
    let offer = Offer { id: ID, vm: VmId([2; 16]), definition: vec![], has_disk: false, post_copy: PostCopy::Auto };
    let mut source = Source::new(NOW, offer);
    source.handle(NOW, ready);
    while source.poll_effect().is_some() {}
    source.handle(NOW, SourceInput::Diverging);
    source.handle(NOW, SourceInput::Diverging);
    assert_eq!(effects(&mut source), [SourceEffect::Pause, SourceEffect::BeginPostCopy]);
    source.handle(NOW, SourceInput::Stopped);
    assert_eq!(source.poll_timeout(), Some(NOW + SWITCH_TIME_MAX));
}

#[test]
fn a_target_runs_only_with_everything_and_the_permission() {
    let prepared = TargetInput::Prepared { post_copy: false };
    let (machine, effects) = target(&[prepared.clone(), LOADED]);
    assert!(!machine.is_ours() && effects == [TargetEffect::Send(ToSource::Ask { id: ID })]);
    let (machine, effects) = target(&[prepared.clone(), go()]);
    assert!(!machine.is_ours() && effects.is_empty());
    for order in [[go(), LOADED], [LOADED, go()]] {
        let (machine, effects) = target(&[vec![prepared.clone()], order.to_vec()].concat());
        assert!(machine.is_ours());
        let claim = TargetEffect::Claim(vec![]);
        assert_eq!(effects, [claim, TargetEffect::Persist(Phase::Taken), TargetEffect::Resume]);
    }
}

#[test]
fn a_target_gives_up_when_its_stream_is_lost_and_not_before() {
    let (mut machine, _) = target(&[TargetInput::PeerFound, TargetInput::Prepared { post_copy: false }]);
    let later = NOW + LOST_TIME_MAX * 2;
    machine.handle(later, TargetInput::Timeout);
    assert_eq!(machine.poll_effect(), None);
    machine.handle(later, TargetInput::PeerLost);
    machine.handle(later + LOST_TIME_MAX, TargetInput::Timeout);
    assert_eq!(machine.poll_effect(), Some(TargetEffect::Drop));
}

#[test]
fn a_restart_goes_on_from_what_is_on_the_disk() {
    for (phase, is_ours) in [(Phase::Trying, true), (Phase::Aborted, true), (Phase::Given, false)] {
        assert_eq!(Source::restore(NOW, ID, phase).unwrap().is_ours(), is_ours, "{phase:?}");
        assert!(Target::restore(NOW, ID, phase, true).is_none());
    }
    let first = |phase, is_whole| Target::restore(NOW, ID, phase, is_whole).unwrap().poll_effect().unwrap();
    assert_eq!(first(Phase::Preparing, false), TargetEffect::Drop);
    assert_eq!(first(Phase::Preparing, true), TargetEffect::Send(ToSource::Ask { id: ID }));
    assert_eq!(first(Phase::Taken, true), TargetEffect::Claim(vec![]));
    assert!(matches!(first(Phase::Taken, false), TargetEffect::Send(ToSource::Taken { .. })));
}

#[test]
fn records_come_back() {
    let record = Record { id: ID, vm: VmId([2; 16]), peer: HostId([3; 32]), phase: Phase::Given };
    assert_eq!(Record::decode(&record.encode()), Ok(record));
}

fn fetching() -> Source {
    let offer = Offer { id: ID, vm: VmId([2; 16]), definition: vec![], has_disk: false, post_copy: PostCopy::Now };
    let mut source = Source::new(NOW, offer);
    for input in [
        SourceInput::Said(ToSource::Ready { id: ID, post_copy: true }),
        SourceInput::Stopped,
        SourceInput::Paused,
        SourceInput::PostCopyBegun,
        taken(false),
    ] {
        source.handle(NOW, input);
    }
    while source.poll_effect().is_some() {}
    source
}

fn taken(has_ended: bool) -> SourceInput {
    SourceInput::Said(ToSource::Taken { id: ID, arrival: Arrival { has_ended, ..Arrival::default() } })
}

#[test]
fn a_source_whose_memory_is_fetched_asks_for_a_verdict_when_the_target_is_silent() {
    let mut source = fetching();
    source.handle(NOW, SourceInput::Resolve(Verdict::Here));
    assert_eq!(effects(&mut source), [], "nobody doubts that the target has it");
    let later = NOW + DOUBT_TIME / 2;
    source.handle(later, taken(false));
    source.handle(NOW + DOUBT_TIME, SourceInput::Timeout);
    assert_eq!(effects(&mut source), [], "it has just spoken");
    let due = later + DOUBT_TIME;
    assert_eq!(source.poll_timeout(), Some(due));
    source.handle(due, SourceInput::Timeout);
    assert_eq!(effects(&mut source), [SourceEffect::Tell(Notice::Severed)]);
    let mut heard = source.clone();
    heard.handle(due, taken(false));
    assert_eq!(effects(&mut heard), [SourceEffect::Tell(Notice::Answered)]);
    let mut other = source.clone();
    source.handle(due, SourceInput::Resolve(Verdict::Here));
    let told = effects(&mut source);
    assert!(
        told.contains(&SourceEffect::TakeBack) && told.contains(&SourceEffect::Persist(Phase::Aborted)),
        "{told:?}"
    );
    other.handle(due, SourceInput::Resolve(Verdict::There));
    assert!(effects(&mut other).contains(&SourceEffect::Erase));
}

#[test]
fn a_guest_whose_memory_was_lost_has_not_moved() {
    let mut source = fetching();
    source.handle(NOW, SourceInput::Ended);
    assert_eq!(effects(&mut source), [], "the target may be gone, and this disk the last one");
    let mut moved = fetching();
    moved.handle(NOW, SourceInput::Sent);
    let mut ended = fetching();
    ended.handle(NOW, taken(true));
    source.handle(NOW, taken(false));
    let outcome = |source: &mut Source| match effects(source).pop() {
        Some(SourceEffect::Done(outcome)) => outcome,
        other => panic!("{other:?}"),
    };
    assert!(matches!(outcome(&mut source), Outcome::Ended(why) if why.contains("memory was lost")));
    assert!(matches!(outcome(&mut ended), Outcome::Ended(why) if why.contains("there")));
    assert!(matches!(outcome(&mut moved), Outcome::Moved(_)));
}

/// A guest that runs before all of its memory is there.
fn running() -> Target {
    let loaded = TargetInput::Loaded { is_whole: false };
    let inputs = [TargetInput::Prepared { post_copy: true }, loaded, go(), TargetInput::Resumed, TargetInput::Opened];
    target(&inputs).0
}

#[test]
fn what_post_copy_needs_before_the_guest_goes_on_is_told_apart() {
    let ms = |ms| NOW + Duration::from_millis(ms);
    for (is_whole, fetched_us) in [(false, 40_000 + 30_000), (true, 0)] {
        let mut target = target(&[TargetInput::Prepared { post_copy: true }, go()]).0;
        target.handle(ms(40), TargetInput::Loaded { is_whole });
        target.handle(ms(45), TargetInput::Resuming);
        target.handle(ms(75), TargetInput::Resumed);
        target.handle(ms(76), TargetInput::Opened);
        let arrival = std::iter::from_fn(|| target.poll_effect()).find_map(|effect| match effect {
            TargetEffect::Send(ToSource::Taken { arrival, .. }) => Some(arrival),
            _ => None,
        });
        let told = Arrival { opened_us: 76_000, answered_us: 76_000, has_ended: false, fetched_us };
        assert_eq!(arrival, Some(told));
    }
}

#[test]
fn a_guest_that_hangs_for_memory_is_told_of_and_not_ended() {
    let mut target = running();
    target.handle(NOW, TargetInput::MemoryCut);
    target.handle(NOW + STARVING_TIME, TargetInput::Timeout);
    let told: Vec<_> = std::iter::from_fn(|| target.poll_effect()).collect();
    assert!(told.contains(&TargetEffect::Tell(Notice::Starving)), "{told:?}");
    target.handle(NOW + STARVING_TIME, TargetInput::MemoryFlows);
    assert_eq!(target.poll_effect(), Some(TargetEffect::Tell(Notice::Fed)));
    // A stream that is made again at once is nobody's business.
    target.handle(NOW + STARVING_TIME, TargetInput::MemoryCut);
    target.handle(NOW + STARVING_TIME, TargetInput::MemoryFlows);
    assert_eq!(target.poll_effect(), None);
}

#[test]
fn a_guest_to_which_nothing_comes_is_told_of_once_and_has_what_comes_later() {
    let mut target = running();
    while target.poll_effect().is_some() {}
    let told = |target: &mut Target, input: TargetInput| {
        target.handle(NOW, input);
        std::iter::from_fn(|| target.poll_effect()).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut target, TargetInput::MemoryDry), [TargetEffect::Tell(Notice::Starving)]);
    assert_eq!(told(&mut target, TargetInput::MemoryDry), []);
    let mut cut = target.clone();
    assert_eq!(told(&mut target, TargetInput::MemoryFlows), [TargetEffect::Tell(Notice::Fed)]);
    assert_eq!(told(&mut target, LOADED), []);
    assert_eq!(told(&mut target, TargetInput::MemoryDry), [], "there is nothing left to come");
    assert_eq!(told(&mut target, TargetInput::MemoryFlows), []);
    assert_eq!(told(&mut target, TargetInput::Said(ToTarget::Finish { id: ID })), [TargetEffect::Forget]);
    assert_eq!(told(&mut cut, TargetInput::MemoryCut), [], "the operator knows");
    assert_eq!(cut.poll_timeout().filter(|at| *at == NOW + STARVING_TIME), None);
    assert_eq!(told(&mut cut, TargetInput::MemoryFlows), [TargetEffect::Tell(Notice::Fed)]);
}

#[test]
fn a_guest_is_ended_when_the_source_has_nothing_left_of_the_memory_that_it_lacks() {
    let finish = || TargetInput::Said(ToTarget::Finish { id: ID });
    let ends = |inputs: &[TargetInput]| {
        let mut target = running();
        inputs.iter().for_each(|input| target.handle(NOW, input.clone()));
        let told: Vec<_> = std::iter::from_fn(|| target.poll_effect()).collect();
        (told.iter().any(|effect| matches!(effect, TargetEffect::End(_))), target.is_done())
    };
    assert_eq!(ends(&[TargetInput::MemoryCut, finish()]), (true, true));
    assert_eq!(ends(&[finish(), TargetInput::MemoryCut]), (true, true));
    assert_eq!(ends(&[finish()]), (false, false), "the last of it is on its way");
    assert_eq!(ends(&[finish(), LOADED]), (false, true));
    assert_eq!(ends(&[LOADED, finish()]), (false, true));
    assert_eq!(ends(&[finish(), TargetInput::Ended]), (false, true));
}
