//! How a configuration and the sheets of others come in force: small changes at once, all else
//! with an image of both lists that another thread compiles, so that bans go on.

use std::{collections::VecDeque, sync::Arc, thread};

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::sync::oneshot;

use super::{
    Order, Writer,
    lists::{entries, put},
    named::Configured,
    sheets::{Sheet, Sheets, Update},
};
use crate::{config::Settings, control::ListName, kernel::Content, plan};

/// What waits to come in force.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) settings: Option<(Box<Settings>, oneshot::Sender<anyhow::Result<()>>)>,
    pub(super) sheets: VecDeque<Update>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.settings.is_none() && self.sheets.is_empty()
    }
}

/// A configuration or sheets on their way, with the lists that they make, once the kernel has
/// them.
pub struct Compiled {
    settings: Option<(Settings, oneshot::Sender<anyhow::Result<()>>)>,
    configured: [Arc<Configured>; 2],
    sheets: Sheets,
    /// Networks of the sheets that `never_ban` leaves out.
    spared: usize,
    answers: Vec<oneshot::Sender<Result<(), String>>>,
    result: anyhow::Result<()>,
}

impl Writer {
    /// Begins to put in force what waits, once no other image is in the making: a configuration's
    /// policy now; lists when they are compiled. One that is made counts until it is taken up here: what came next
    /// would begin from lists without it.
    pub(super) fn apply(&mut self) {
        self.change_sheets();
        if self.waiting.is_empty() || self.meanwhile.is_some() {
            return;
        }
        // What operators have listed is taken in the same step: no change falls in between.
        let Some(job) = self.tables.lists.try_begin() else { return };
        let Waiting { mut settings, sheets: updates } = std::mem::take(&mut self.waiting);
        if let Some((next, answer)) = settings.take() {
            match self.tables.update_policy(&plan::kernel_policy(&next)) {
                Ok(()) => {
                    self.signatures.clone_from(&next.kernel.signatures);
                    settings = Some((next, answer));
                }
                Err(error) => {
                    self.keep_former();
                    let error = anyhow::Error::from(error);
                    let _ = answer.send(Err(error.context("cannot configure the kernel programs")));
                }
            }
        }
        let (mut sheets, mut answers) = (self.deny.sheets.clone(), Vec::new());
        for Update { sheet, answer, .. } in updates {
            put(&mut sheets, sheet);
            answers.push(answer);
        }
        self.meanwhile = Some(Vec::new());
        let (operators, orders) = (self.of_operators(), self.edge.orders.clone());
        let configured = [&self.allow, &self.deny].map(|list| Arc::clone(&list.configured));
        let compile = move || {
            let configured = match &settings {
                Some((settings, _)) => Configured::both(settings, Some(&configured)).map(Arc::new),
                None => configured,
            };
            let made = job.make(Content::Entries(entries(&configured, &sheets, operators)));
            let result = made.context("cannot write the lists");
            let settings = settings.map(|(settings, answer)| (*settings, answer));
            let spared = configured[1].count_spared(&sheets);
            let compiled = Compiled { settings, configured, sheets, spared, answers, result };
            // Without a writer there is nobody left to answer to.
            let _ = orders.send(Order::Compiled(Box::new(compiled)));
        };
        if let Err(error) = thread::Builder::new().name("lists".into()).spawn(compile) {
            // The answers and the job are dropped with the closure, and that is one.
            tracing::error!(%error, "no thread to compile the lists");
            self.meanwhile = None;
            self.keep_former();
        }
    }

    /// Puts sheets in force that differ little from their former, as long as no image is made that
    /// would not have them.
    fn change_sheets(&mut self) {
        while self.meanwhile.is_none() {
            let is_small = |update: &mut Update| {
                update.changed.as_ref().is_some_and(|changed| changed.len() <= LITTLE)
            };
            let Some(update) = self.waiting.sheets.pop_front_if(is_small) else { return };
            let Update { sheet, changed, answer } = update;
            let changed = changed.unwrap_or_default();
            let former = self.deny.change(sheet, &changed);
            let written =
                changed.iter().try_for_each(|net| self.write(ListName::Deny, net).map(|_| ()));
            if written.is_err() {
                self.put_sheet_back(former, &changed);
            }
            let _ = answer.send(written.map_err(|error| format!("{error:#}")));
        }
    }

    /// After a change that could be written in part alone.
    fn put_sheet_back(&mut self, former: Arc<Sheet>, changed: &[IpNet]) {
        self.deny.change(former, changed);
        for net in changed {
            if let Err(error) = self.write(ListName::Deny, net) {
                let error = format!("{error:#}");
                tracing::error!(%net, error, "a change cannot be taken back");
            }
        }
    }

    /// The rest of what waited for lists that are in force; or, if they cannot be, the former.
    pub(super) fn compiled(&mut self, compiled: Compiled) {
        let Compiled { settings, configured, sheets, spared, answers, result } = compiled;
        let told = match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(format!("{error:#}")),
        };
        if result.is_ok() {
            self.configure(configured, sheets, spared);
        } else {
            self.keep_former();
        }
        let answer = settings.map(|(settings, answer)| {
            if result.is_ok() {
                let verdicts = &settings.verdicts;
                self.engine.configure(plan::verdicts(verdicts));
                self.edge.identities.expect(verdicts.shared_by, verdicts.shared_within);
                self.settings = settings;
                self.free_exempt();
            }
            answer
        });
        for (list, net) in self.meanwhile.take().unwrap_or_default() {
            if let Err(error) = self.write(list, &net) {
                let error = format!("{error:#}");
                tracing::error!(list = list.name(), %net, error, "a change was lost to a reload");
            }
        }
        if let Some(answer) = answer {
            let _ = answer.send(result);
        }
        self.tell_listed();
        for answer in answers {
            let _ = answer.send(told.clone());
        }
    }

    /// Tells the request plane what is listed, if that has changed.
    pub(super) fn tell_listed(&mut self) {
        if self.listed != Some(self.tables.lists.changes()) {
            let (changes, view) = self.tables.lists.view();
            self.edge.listed.store(Arc::new(view));
            self.listed = Some(changes);
        }
    }

    fn keep_former(&mut self) {
        let policy = plan::kernel_policy(&self.settings);
        match self.tables.restore_policy(&policy) {
            Ok(()) => self.signatures.clone_from(&self.settings.kernel.signatures),
            Err(error) => tracing::error!(%error, "nor can the former policy be put back"),
        }
    }

    fn configure(&mut self, [allow, deny]: [Arc<Configured>; 2], sheets: Sheets, spared: usize) {
        self.allow.configured = allow;
        self.deny.configured = deny;
        self.deny.sheets = sheets;
        self.deny.note_spared(spared);
    }
}

/// Networks that are written one by one: a few milliseconds of the writer's time.
const LITTLE: usize = 1_000;
