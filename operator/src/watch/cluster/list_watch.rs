//! One kind's list and watch, with the resource versions that come along.
//!
//! kube's watcher keeps to itself which version a list has, and bookmarks; by these alone a replica knows
//! how far it has come where nothing happens. And its streamed lists may be those of an API server that
//! lags behind; these here are consistent.
//!
//! Invariants:
//! - After an error the watch goes on where it was. Only a version that is too old (410) leads to
//!   another list.
//! - What is told of a version comes with the event that it belongs to, or after it.

use std::{convert::Infallible, time::Duration};

use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api,
    api::{ListParams, WatchParams},
    core::WatchEvent,
};
use kube_runtime::watcher::Event as Watched;

use super::{Context, Following, Over, decoder::Decoder, raw::Raw};
use crate::watch::Reach;

/// A server ends a watch after 290 s; one that is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(320);
/// How long nothing of a list may come. An API server that can't read what it has, since a conversion webhook is
/// away, for instance, doesn't refuse a streamed list: it says nothing.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// How many objects a page of a list has.
const PAGE: u32 = 500;
/// The mark of the bookmark that ends a streamed list.
const LISTED: &str = "k8s.io/initial-events-end";

/// Why a watch ended.
pub(super) enum Ended {
    Over,
    Failed(kube::Error),
    /// Nothing of a list came for [`LIST_SILENCE`].
    Silent,
}

impl From<Over> for Ended {
    fn from(Over: Over) -> Self {
        Self::Over
    }
}

impl From<kube::Error> for Ended {
    fn from(error: kube::Error) -> Self {
        Self::Failed(error)
    }
}

type Events = BoxStream<'static, kube::Result<WatchEvent<Raw>>>;

/// See the module's comment.
pub(super) struct ListWatch<'a> {
    context: &'a Context,
    decoder: &'a mut Decoder,
    api: Api<Raw>,
    /// The version up to which everything was told; `None` where there has to be a list.
    at: Option<String>,
}

impl<'a> ListWatch<'a> {
    pub(super) fn new(context: &'a Context, decoder: &'a mut Decoder, api: Api<Raw>) -> Self {
        Self { context, decoder, api, at: None }
    }

    /// The next time begins with a list; says whether this one didn't.
    pub(super) fn list_again(&mut self) -> bool {
        self.at.take().is_some()
    }

    /// Lists if need be, by streaming or by pages, and watches until something fails.
    pub(super) async fn follow(
        &mut self,
        streamed: bool,
        following: &mut Following,
    ) -> Result<Infallible, Ended> {
        let mut listed = match self.at {
            Some(_) => None,
            None => {
                let events = if streamed { Some(self.streamed_list().await?) } else { self.list().await? };
                following.answered();
                following.is_listed();
                events
            }
        };
        loop {
            let mut events = match listed.take() {
                Some(events) => events,
                None => {
                    let at = self.at.as_deref().unwrap_or_default();
                    let events = self.api.watch(&WatchParams::default(), at).await?.boxed();
                    following.answered();
                    events
                }
            };
            // One that says nothing is resumed elsewhere.
            while let Some(event) = within(SILENCE, events.next()).await.unwrap_or_default().transpose()? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        let version = version_of(&object);
                        self.changed(version, Watched::Apply(object)).await?;
                    }
                    WatchEvent::Deleted(object) => {
                        let version = version_of(&object);
                        self.changed(version, Watched::Delete(object)).await?;
                    }
                    WatchEvent::Bookmark(mark) => self.bookmark(mark.metadata.resource_version).await?,
                    WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
                }
            }
        }
    }

    /// Lists by streaming; returns the rest of the watch that began with the list.
    async fn streamed_list(&mut self) -> Result<Events, Ended> {
        // Without a version the list is consistent.
        let parameters = WatchParams::default().initial_events();
        let mut events = within(LIST_SILENCE, self.api.watch(&parameters, "")).await??.boxed();
        self.event(Watched::Init, None).await?;
        while let Some(event) = within(LIST_SILENCE, events.next()).await?.transpose()? {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let version = number(&version_of(&object)).map(Reach::Listing);
                    self.event(Watched::InitApply(object), version).await?;
                }
                WatchEvent::Bookmark(mark) if mark.metadata.annotations.contains_key(LISTED) => {
                    self.listed(mark.metadata.resource_version).await?;
                    return Ok(events);
                }
                // A list has no others.
                WatchEvent::Bookmark(_) | WatchEvent::Deleted(_) => {}
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            }
        }
        Err(Ended::Failed(kube::Error::Service("the list ended early".into())))
    }

    /// By pages; leaves nothing of a watch.
    async fn list(&mut self) -> Result<Option<Events>, Ended> {
        self.event(Watched::Init, None).await?;
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = within(LIST_SILENCE, self.api.list(&page)).await??;
            for object in list.items {
                let version = number(&version_of(&object)).map(Reach::Listing);
                self.event(Watched::InitApply(object), version).await?;
            }
            page.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
            if page.continue_token.is_none() {
                self.listed(list.metadata.resource_version.unwrap_or_default()).await?;
                return Ok(None);
            }
        }
    }

    async fn listed(&mut self, at: String) -> Result<(), Over> {
        self.event(Watched::InitDone, Some(number(&at).map_or(Reach::Unknown, Reach::Listed))).await?;
        self.at = Some(at);
        Ok(())
    }

    async fn changed(&mut self, at: String, event: Watched<Raw>) -> Result<(), Over> {
        self.event(event, number(&at).map(Reach::Changed)).await?;
        self.at = Some(at);
        Ok(())
    }

    async fn event(&mut self, event: Watched<Raw>, reach: Option<Reach>) -> Result<(), Over> {
        let update = self.decoder.take(event, reach);
        self.context.tell(update).await
    }

    async fn bookmark(&mut self, at: String) -> Result<(), Over> {
        if let Some(version) = number(&at) {
            self.context.tell(self.decoder.quiet(Reach::Quiet(version))).await?;
        }
        self.at = Some(at);
        Ok(())
    }
}

async fn within<T>(time: Duration, answer: impl Future<Output = T>) -> Result<T, Ended> {
    tokio::time::timeout(time, answer).await.map_err(|_elapsed| Ended::Silent)
}

fn version_of(object: &Raw) -> String {
    object.meta.resource_version.clone().unwrap_or_default()
}

/// Versions are decimal numbers since there are any, by the documentation since Kubernetes 1.35; one that
/// is something else says nothing.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}
