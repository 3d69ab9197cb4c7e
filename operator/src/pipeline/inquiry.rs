//! Questions of people to the compiler, answered between two batches of updates.
//!
//! Invariant: whoever asks holds up nobody but the compile thread, and that for the one answer. It doesn't keep the
//! pipeline alive either.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use slotmesh_compile::{Compiler, Origins};
use slotmesh_xds::ResourceName;
use tokio::sync::{
    mpsc::{Sender, WeakSender},
    oneshot,
};

use crate::watch::Update;

type Question = Box<dyn FnOnce(&Compiler) + Send>;

/// Questions that wait for the compile thread.
#[derive(Clone, Default)]
pub(super) struct Questions(Arc<Mutex<Vec<Question>>>);

impl Questions {
    /// Answers all that wait.
    pub(super) fn answer(&self, compiler: &Compiler) {
        let waiting = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(|question| question(compiler));
    }
}

impl fmt::Debug for Questions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Questions")
    }
}

/// A way to ask the compiler of a running pipeline.
#[derive(Clone, Debug)]
pub struct Inquiry {
    questions: Questions,
    /// An update without anything wakes the thread.
    wake: WeakSender<Update>,
}

impl Inquiry {
    pub(super) fn new(questions: Questions, updates: &Sender<Update>) -> Self {
        Self { questions, wake: updates.downgrade() }
    }

    /// The objects because of which a listener leads connections where it does; `None` where there is none of this
    /// name, or the pipeline has ended.
    pub async fn origins(&self, listener: ResourceName) -> Option<Origins> {
        self.ask(move |compiler| compiler.origins(&listener)).await.flatten()
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Compiler) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |compiler| drop(reply.send(question(compiler))));
        self.questions.0.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        let nothing = Update {
            events: Vec::new(),
            appeared: Vec::new(),
            disappeared: Vec::new(),
            seen: Instant::now(),
            reached: None,
        };
        self.wake.upgrade()?.send(nothing).await.ok()?;
        answer.await.ok()
    }
}
