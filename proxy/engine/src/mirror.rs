//! Copies of requests for mirrors: sent once the body has come whole, and their responses thrown away.
//!
//! A copy delays nothing and fails nothing. Where the worker has as many as it may have, or the body isn't kept, it is
//! left out and counted.

use std::{rc::Rc, time::Duration};

use http_body_util::BodyExt as _;
use tokio::{task::spawn_local, time::timeout};

use crate::{
    attempt::{Arrived, Target, UpstreamHead},
    body::{Progress, Replay, RequestBody},
    worker::Worker,
};

/// How long a copy may take, from the head of the request to the end of its response.
const TIME: Duration = Duration::from_secs(15);

/// Counts a copy on its worker.
struct Place(Rc<Worker>);

impl Place {
    fn take(worker: &Rc<Worker>) -> Option<Self> {
        if worker.mirrors.get() >= worker.limits.mirrors {
            return None;
        }
        worker.mirrors.set(worker.mirrors.get() + 1);
        Some(Self(worker.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

/// Sends a copy, in the background.
pub(crate) fn send(target: Target, head: UpstreamHead, body: Option<Replay>, progress: Rc<Progress>) {
    let worker = target.worker.clone();
    let Some(place) = Place::take(&worker) else { return worker.stats.mirrors_shed.one_more() };
    spawn_local(async move {
        let _place = place;
        if timeout(TIME, copy(target, head, body, progress)).await.is_err() {
            tracing::debug!("a mirrored request took too long");
        }
    });
}

async fn copy(target: Target, head: UpstreamHead, body: Option<Replay>, progress: Rc<Progress>) {
    progress.end_of_request().await;
    let body = match body {
        None => RequestBody::Empty,
        Some(kept) => match kept.whole() {
            Some(whole) => RequestBody::Kept(whole.into()),
            None => return target.worker.stats.mirrors_shed.one_more(),
        },
    };
    target.worker.stats.mirrors.one_more();
    let Ok(arrived) = target.attempt(&head, body, false, false, &mut Vec::new()).await else { return };
    let Arrived { response, connection, pool, busy } = arrived;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return;
        }
    }
    pool.give_back(connection, &target.worker.limits, target.cluster.config.requests_per_connection);
    drop(busy);
}
