//! Uses and rests by a clock that stands still unless a test waits.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use setpoint_vmm::sim::TokioClock;

use super::*;

fn app() -> AppKey {
    "blog".parse().unwrap()
}

fn uses() -> Uses {
    Uses::with_clock(Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH)))
}

async fn hush(uses: &Uses, manners: Manners) -> Stillness {
    uses.hush(&app(), manners, &CancellationToken::new()).await
}

#[tokio::test(start_paused = true)]
async fn nobody_begins_to_use_an_app_that_is_being_put_to_rest() {
    let uses = uses();
    let Stillness::Still(hush) = hush(&uses, Manners::Yield).await else { panic!("nobody uses it") };
    assert!(uses.begin(&app()).is_none());
    let mut turns = uses.turns();
    turns.mark_unchanged();
    drop(hush);
    assert!(turns.has_changed().unwrap(), "who waits is told");
    assert!(uses.begin(&app()).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_app_that_has_come_to_rest_is_used_again_once_that_shows() {
    let uses = uses();
    let Stillness::Still(hush) = hush(&uses, Manners::Drain).await else { panic!("nobody uses it") };
    hush.keep();
    assert!(uses.begin(&app()).is_none());
    uses.unhush(&app());
    assert!(uses.begin(&app()).is_some());
}

#[tokio::test(start_paused = true)]
async fn one_use_calls_an_idle_rest_off() {
    let uses = uses();
    let using = uses.begin(&app()).unwrap();
    assert!(matches!(hush(&uses, Manners::Yield).await, Stillness::Used));
    assert!(uses.begin(&app()).is_some(), "others may use it as well");
    drop(using);
}

#[tokio::test(start_paused = true)]
async fn what_is_open_has_a_while_to_finish_before_a_rest_that_is_wanted() {
    let uses = uses();
    let using = uses.begin(&app()).unwrap();
    let began = tokio::time::Instant::now();
    let waiting = tokio::spawn({
        let uses = uses.clone();
        async move { hush(&uses, Manners::Drain).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(uses.begin(&app()).is_none(), "nobody else begins");
    drop(using);
    assert!(matches!(waiting.await.unwrap(), Stillness::Still(_)));
    assert_eq!(began.elapsed(), Duration::from_secs(1), "the end of the last use is an event");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_ends_does_not_put_off_a_rest_for_ever() {
    let uses = uses();
    let _using = uses.begin(&app()).unwrap();
    let began = tokio::time::Instant::now();
    assert!(matches!(hush(&uses, Manners::Drain).await, Stillness::Still(_)));
    assert_eq!(began.elapsed().as_secs(), DRAIN.as_secs());
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_to_rest_any_more_is_not_waited_for() {
    let uses = uses();
    let _using = uses.begin(&app()).unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(matches!(uses.hush(&app(), Manners::Drain, &cancel).await, Stillness::Cancelled));
    assert!(uses.begin(&app()).is_some());
}
