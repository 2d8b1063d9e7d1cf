//! Chooses which of two versions answers a request during a trial: users and conversations keep theirs. Never decides
//! about a version.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use crate::ledger::MOST_ROUTES as MOST;
use crate::lock::lock;
use crate::types::{GenerateRequest, PolicyVersion, TokenId};

/// A trial from the point of view of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Split {
    pub candidate: PolicyVersion,
    /// Share of the users that get the candidate.
    pub share: f64,
}

/// The running trial and the conversations assigned so far.
#[derive(Default)]
pub(super) struct Routes(Mutex<State>);

#[derive(Default)]
struct State {
    split: Option<Split>,
    /// Whether a conversation belongs to the candidate; none of one that was met before the trial. Beyond a bound, the
    /// oldest are assigned anew.
    met: HashMap<u64, Option<bool>>,
    order: VecDeque<u64>,
}

impl State {
    fn remember(&mut self, conversation: u64, theirs: Option<bool>) {
        if self.met.insert(conversation, theirs).is_some() {
            return;
        }
        if self.order.len() == MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.met.remove(&oldest);
        }
        self.order.push_back(conversation);
    }

    fn end(&mut self) {
        self.split = None;
        self.met.values_mut().for_each(|theirs| *theirs = None);
    }
}

/// A conversation that was assigned just now.
#[derive(Debug, PartialEq)]
pub(super) struct Met {
    pub candidate: PolicyVersion,
    pub conversation: u64,
    /// Whether it belongs to the candidate.
    pub theirs: bool,
}

impl Routes {
    /// Starts a trial, or goes on with one whose conversations are known: whether they belong to the candidate, oldest
    /// first. If it runs already, only the share changes.
    pub(super) fn begin(&self, split: Split, known: &[(u64, bool)]) {
        if lock(&self.0).split.is_some_and(|running| running.candidate == split.candidate) {
            return self.widen(split);
        }
        let mut state = lock(&self.0);
        state.end();
        state.split = Some(split);
        known.iter().for_each(|(conversation, theirs)| state.remember(*conversation, Some(*theirs)));
    }

    /// Changes the share of a trial. Conversations keep their version.
    pub(super) fn widen(&self, split: Split) {
        lock(&self.0).split = Some(split);
    }

    /// Ends a trial, if there is one.
    pub(super) fn end(&self) {
        lock(&self.0).end();
    }

    /// The candidate and the conversation of a request that goes on with one which is not known here.
    pub(super) fn stranger(&self, request: &GenerateRequest) -> Option<(PolicyVersion, u64)> {
        let state = lock(&self.0);
        let Split { candidate, .. } = state.split.filter(|_| request.version.is_none() && request.answered)?;
        let conversation = key(request.user.as_deref(), request.conversation?);
        (!state.met.contains_key(&conversation)).then_some((candidate, conversation))
    }

    /// Notes what is known elsewhere of a conversation: whether it belongs to the candidate.
    pub(super) fn recall(&self, candidate: PolicyVersion, conversation: u64, theirs: bool) {
        let mut state = lock(&self.0);
        if state.split.is_some_and(|split| split.candidate == candidate) && !state.met.contains_key(&conversation) {
            state.remember(conversation, Some(theirs));
        }
    }

    /// Sets the candidate as the version of a request that it should answer. A request that names a version is left
    /// alone. Returns the conversation if it is new.
    pub(super) fn choose(&self, request: &mut GenerateRequest) -> Option<Met> {
        let mut state = lock(&self.0);
        // Two users may begin with the same words.
        let user = request.user.as_deref();
        let Some(Split { candidate, share }) = state.split.filter(|_| request.version.is_none()) else {
            if let Some(conversation) = request.conversation {
                let conversation = key(user, conversation);
                if !state.met.contains_key(&conversation) {
                    state.remember(conversation, None);
                }
            }
            return None;
        };
        let conversation = key(user, request.conversation.unwrap_or_else(|| of_prompt(&request.prompt)));
        let met = state.met.get(&conversation).copied();
        let known = met.flatten();
        let theirs = known.unwrap_or_else(|| {
            let conversation = conversation.to_le_bytes();
            let began_before = met.is_some() && request.answered;
            !began_before && in_share(candidate, user.map_or(&conversation[..], str::as_bytes), share)
        });
        if known.is_none() {
            state.remember(conversation, Some(theirs));
        }
        if theirs {
            request.version = Some(candidate);
        }
        known.is_none().then_some(Met { candidate, conversation, theirs })
    }
}

fn of_prompt(prompt: &[TokenId]) -> u64 {
    let mut hash = Sha256::new();
    prompt.iter().for_each(|token| hash.update(token.to_le_bytes()));
    first(hash)
}

fn key(user: Option<&str>, conversation: u64) -> u64 {
    let Some(user) = user else { return conversation };
    let mut hash = Sha256::new();
    hash.update(conversation.to_le_bytes());
    hash.update(user);
    first(hash)
}

/// Whether a user, or a conversation of nobody, is among the share that gets the candidate.
fn in_share(candidate: PolicyVersion, who: &[u8], share: f64) -> bool {
    number(candidate, who) < share
}

/// A number from 0 to 1 that depends on the user and the candidate, so that other users get the next candidate first.
fn number(candidate: PolicyVersion, who: &[u8]) -> f64 {
    let mut hash = Sha256::new();
    hash.update(candidate.0.to_le_bytes());
    hash.update(who);
    first(hash) as f64 / u64::MAX as f64
}

fn first(hash: Sha256) -> u64 {
    hash.finalize().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(user: Option<&str>, conversation: u64) -> GenerateRequest {
        GenerateRequest {
            user: user.map(str::to_owned),
            conversation: Some(conversation),
            prompt: vec![1],
            ..GenerateRequest::default()
        }
    }

    fn version(routes: &Routes, user: Option<&str>, conversation: u64) -> Option<PolicyVersion> {
        let mut request = request(user, conversation);
        routes.choose(&mut request);
        request.version
    }

    fn split(share: f64) -> Split {
        Split { candidate: PolicyVersion(7), share }
    }

    #[test]
    fn as_many_users_get_the_candidate_as_the_share_says_and_always_the_same() {
        let routes = Routes::default();
        routes.begin(split(0.25), &[]);
        let theirs = |user: u64| version(&routes, Some(&format!("user {user}")), user);
        let first: Vec<_> = (0..2000).map(theirs).collect();
        let count = first.iter().filter(|v| v.is_some()).count();
        assert!((440..560).contains(&count), "{count} of 2000");
        // In other conversations too.
        for user in 0..200 {
            assert_eq!(version(&routes, Some(&format!("user {user}")), user + 5000), first[user as usize]);
        }
    }

    #[test]
    fn a_conversation_stays_with_its_version_when_the_share_grows() {
        let routes = Routes::default();
        routes.begin(split(0.05), &[]);
        let before: Vec<_> = (0..500).map(|c| version(&routes, None, c)).collect();
        routes.widen(split(0.25));
        assert_eq!(before, (0..500).map(|c| version(&routes, None, c)).collect::<Vec<_>>());
        assert!((500..1000).filter(|c| version(&routes, None, *c).is_some()).count() > 80);
    }

    #[test]
    fn conversations_that_are_known_keep_their_version_whatever_the_share_is_now() {
        let routes = Routes::default();
        routes.begin(split(0.05), &[]);
        let met = |c: u64| routes.choose(&mut request(Some("ann"), c));
        let known: Vec<_> = (0..200).filter_map(met).map(|met| (met.conversation, met.theirs)).collect();
        assert_eq!((known.len(), met(3)), (200, None));
        let after = Routes::default();
        after.begin(split(1.0), &known);
        for c in 0..200 {
            assert_eq!(version(&after, Some("ann"), c), version(&routes, Some("ann"), c));
        }
        assert_eq!(version(&after, Some("bob"), 1), Some(PolicyVersion(7)));
    }

    #[test]
    fn a_conversation_that_began_before_a_trial_or_in_another_stays_with_the_version_of_everyone() {
        let routes = Routes::default();
        let turn = |conversation: u64, answered: bool| {
            let mut request = GenerateRequest { answered, ..request(None, conversation) };
            routes.choose(&mut request);
            request.version
        };
        (0..100).for_each(|c| assert_eq!(turn(c, false), None));
        routes.begin(split(1.0), &[]);
        (0..50).for_each(|c| assert_eq!(turn(c, true), None));
        // Another conversation that begins with the same words, and one that nobody knows.
        (50..150).for_each(|c| assert_eq!(turn(c, false), Some(PolicyVersion(7))));
        (150..200).for_each(|c| assert_eq!(turn(c, true), Some(PolicyVersion(7))));
        routes.begin(Split { candidate: PolicyVersion(8), share: 1.0 }, &[(0, true)]);
        assert_eq!([turn(0, true), turn(1, true), turn(60, true)], [Some(PolicyVersion(8)), None, None]);
        routes.end();
        assert_eq!(turn(0, true), None);
    }

    #[test]
    fn without_a_trial_and_for_requests_that_name_a_version_nothing_is_chosen() {
        let routes = Routes::default();
        assert_eq!(version(&routes, None, 1), None);
        routes.begin(split(1.0), &[]);
        let mut named = GenerateRequest { version: Some(PolicyVersion(3)), ..request(None, 1) };
        routes.choose(&mut named);
        assert_eq!(named.version, Some(PolicyVersion(3)));
        assert_eq!(version(&routes, None, 2), Some(PolicyVersion(7)));
        routes.end();
        assert_eq!(version(&routes, None, 2), None);
    }

    #[test]
    fn conversations_that_are_remembered_are_bounded() {
        let routes = Routes::default();
        routes.begin(split(0.5), &[]);
        for conversation in 0..MOST as u64 + 10 {
            version(&routes, None, conversation);
        }
        assert_eq!(lock(&routes.0).met.len(), MOST);
    }
}
