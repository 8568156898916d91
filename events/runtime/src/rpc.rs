//! Requests and answers between processes, over NATS micro services.
//!
//! A requester names the subject of the answer (the reply subject), and the answer is published with the rights of the
//! *service*. A requester could thus have the service publish to any subject. Two rules prevent that. This module
//! sends an answer only into an inbox of the [`Requester`] that the endpoint serves, and the broker lets the services'
//! answering connection publish to inboxes only.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, RequestErrorKind,
    service::{self, Service, ServiceExt},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt};
use gpubnb_events::{Actor, Chain, Refusal, RefusalKind, message::header, subject};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};

use crate::{
    metric,
    nats::is_connected,
    trace,
    turns::{Place, Turns},
};

/// Largest request body.
const MAX_BODY: usize = 256 * 1024;
/// Requests that one endpoint works on at once. Further requests wait in this process.
const MAX_IN_FLIGHT: usize = 256;
/// Longest time that a requester waits for an answer, and that a stopping server waits for its last answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// The reason why a request got no positive answer.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum RpcError {
    /// The service refused the request, for a named reason.
    #[error("{0}")]
    Refused(Refusal),
    /// There is no answer now, and the request may still have taken effect. The requester should repeat the request. A
    /// repeated command has the same id, so that it takes effect only once.
    #[error("{0}")]
    Unavailable(String),
}

impl RpcError {
    /// Makes a [`RpcError::Unavailable`] because of `error`. The requester reads `message`; the chain of causes of the
    /// error, which may name addresses and other internals, goes into the log lines of this process.
    pub fn unavailable(message: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        let message = message.into();
        warn!(error = %Chain(error), "{message}");
        Self::Unavailable(message)
    }

    /// The answer to a machine that sends more requests than a machine may.
    pub fn asks_too_often() -> Self {
        Self::Unavailable("this machine asks too often; wait a little".to_owned())
    }

    /// Makes a [`RpcError::Refused`].
    pub fn refused(refusal: impl Into<Refusal>) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<Refusal> for RpcError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Sends requests to services, each in the name of an actor.
#[derive(Clone)]
pub struct Caller {
    client: Client,
}

impl Caller {
    /// Makes a caller that sends its requests over this connection.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The connection over which this caller sends.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends one request and waits for its answer. Fails without waiting if this process is not connected to the
    /// broker, or if no service listens on the subject.
    pub async fn call<T: DeserializeOwned>(
        &self,
        subject: String,
        actor: Actor,
        body: &(impl Serialize + Sync),
    ) -> Result<T, RpcError> {
        let nobody = RpcError::Unavailable(format!("nobody answers {subject}"));
        self.call_if_served(subject, actor, body).await?.ok_or(nobody)
    }

    /// Sends one request and waits for its answer. Returns `None` if no service listens on the subject.
    pub async fn call_if_served<T: DeserializeOwned>(
        &self,
        subject: String,
        actor: Actor,
        body: &(impl Serialize + Sync),
    ) -> Result<Option<T>, RpcError> {
        let no_answer = |error: &(dyn std::error::Error + 'static)| {
            RpcError::unavailable(format!("no answer from {subject}"), error)
        };
        if !is_connected(&self.client) {
            return Err(RpcError::Unavailable("the broker is away; this process is reconnecting".to_owned()));
        }
        let payload = serde_json::to_vec(body).map_err(|e| no_answer(&e))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACTOR, actor.to_string());
        trace::inject(&mut headers);
        let request = async_nats::Request::new().headers(headers).payload(payload.into()).timeout(Some(ANSWER_TIMEOUT));
        let reply = match self.client.send_request(subject.clone(), request).await {
            Err(e) if e.kind() == RequestErrorKind::NoResponders => return Ok(None),
            reply => reply.map_err(|e| no_answer(&e))?,
        };
        let answer: Result<T, RpcError> = serde_json::from_slice(&reply.payload).map_err(|e| no_answer(&e))?;
        answer.map(Some)
    }
}

/// The kind of requester that an endpoint answers. The kind decides into which inboxes an answer may go.
#[derive(Debug, Clone, Copy)]
pub enum Requester {
    /// The web server (which speaks for people who are signed in), or the operator's tool.
    Edge,
    /// The machine that the request's subject names.
    Machine,
    /// Any process of the platform: the processes of `Edge`, the services and the projectors.
    Platform,
}

/// A request that passed the checks in `admit`.
pub struct Incoming {
    /// The subject to which the request was sent.
    pub subject: String,
    /// The actor in whose name the request is made.
    pub actor: Actor,
    /// The request's body: JSON that is not parsed yet.
    pub body: Bytes,
    /// The requester's trace. Empty if the requester is a machine, because a machine could name a foreign trace.
    trace: opentelemetry::Context,
}

impl Incoming {
    /// Parses the body as JSON.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, RpcError> {
        serde_json::from_slice(&self.body).map_err(|e| {
            Refusal::new("BadRequest", RefusalKind::Invalid, format!("The request could not be read: {e}.")).into()
        })
    }
}

/// The endpoints of one process.
pub struct Server {
    service: Service,
    /// One task per endpoint, and one task per request that is being answered.
    tasks: TaskTracker,
    /// Once cancelled, the endpoints take no further request.
    stop: CancellationToken,
}

impl Server {
    /// Starts a micro service without endpoints. Processes that start it under the same `name` share the requests.
    pub async fn start(client: &Client, name: &str, stop: CancellationToken) -> Result<Self, async_nats::Error> {
        let service = client.service_builder().queue_group(name).start(name, env!("CARGO_PKG_VERSION")).await?;
        Ok(Self { service, tasks: TaskTracker::new(), stop })
    }

    /// Serves one endpoint: `handler` answers the requests whose subject matches `filter` (`*` stands for any machine).
    pub async fn endpoint<F, Fut>(
        &self,
        name: &str,
        filter: String,
        requester: Requester,
        handler: F,
    ) -> Result<(), async_nats::Error>
    where
        F: Fn(Incoming) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<serde_json::Value, RpcError>> + Send + 'static,
    {
        let mut requests = self.service.endpoint_builder().name(name).add(filter).await?;
        let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let endpoint = Arc::new(Endpoint { name: name.to_owned(), handler, permits, turns: Turns::new() });
        let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&endpoint.permits).acquire_owned().await else { return };
                let request = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    request = requests.next() => request,
                };
                let Some(request) = request else { return };
                if let Some(admitted) = endpoint.admit(request, requester).await {
                    tasks.spawn(Arc::clone(&endpoint).work(admitted, permit));
                }
            }
        });
        Ok(())
    }

    /// Waits, at most [`ANSWER_TIMEOUT`], until every request that an endpoint has taken is answered, and stops the
    /// micro service. Call this after the stop token is cancelled.
    pub async fn finish(self) {
        self.tasks.close();
        if tokio::time::timeout(ANSWER_TIMEOUT, self.tasks.wait()).await.is_err() {
            warn!("this process stops before some requests are answered");
        }
        if let Err(e) = self.service.stop().await {
            warn!(error = %e, "the service could not be stopped cleanly");
        }
    }
}

/// A request that passed the checks in [`admit`], and the message to answer.
struct Admitted {
    incoming: Incoming,
    request: service::Request,
}

/// One endpoint: its handler, and which requests it works on.
struct Endpoint<F> {
    name: String,
    handler: F,
    /// One per request that the endpoint works on.
    permits: Arc<Semaphore>,
    turns: Turns<Admitted>,
}

impl<F, Fut> Endpoint<F>
where
    F: Fn(Incoming) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<serde_json::Value, RpcError>> + Send + 'static,
{
    /// Checks a request. Returns the request if the endpoint works on it now.
    async fn admit(&self, request: service::Request, requester: Requester) -> Option<Admitted> {
        let incoming = match admit(&request.message, requester) {
            Ok(incoming) => incoming,
            Err(NotAdmitted::TooLarge) => {
                // `admit` has accepted the reply subject, so an answer may be sent. Without an answer, the requester
                // would try again for ever.
                let refusal = Refusal::new("TooLarge", RefusalKind::Invalid, "The request is too large.");
                respond(&request, &Err(RpcError::Refused(refusal))).await;
                return None;
            }
            Err(NotAdmitted::BreaksRules(why)) => {
                warn!(subject = %request.message.subject, why, "ignored a request that breaks the rules");
                return None;
            }
        };
        let Actor::Machine(machine) = incoming.actor else { return Some(Admitted { incoming, request }) };
        match self.turns.arrive(machine, Admitted { incoming, request }) {
            Place::Now(admitted) => Some(admitted),
            Place::Later => None,
            Place::Full(admitted) => {
                respond(&admitted.request, &Err(RpcError::asks_too_often())).await;
                None
            }
        }
    }

    /// Answers a request, and then the requests of the same machine that wait. Between two requests, others get their
    /// turn.
    async fn work(self: Arc<Self>, first: Admitted, mut permit: OwnedSemaphorePermit) {
        let mut next = Some(first);
        while let Some(Admitted { incoming, request }) = next {
            let actor = incoming.actor;
            let began = std::time::Instant::now();
            let handled = trace::in_context(incoming.trace.clone(), (self.handler)(incoming));
            // Without this, a panic would keep the machine's turn for ever.
            let answer = AssertUnwindSafe(handled).catch_unwind().await.unwrap_or_else(|_| {
                error!(endpoint = self.name, "a request ended with a panic");
                Err(RpcError::Unavailable("the request ended with an internal error".to_owned()))
            });
            count_answer(self.name.clone(), &answer, began.elapsed());
            respond(&request, &answer).await;
            drop(permit);
            let Actor::Machine(machine) = actor else { return };
            next = self.turns.next(machine);
            if next.is_none() {
                return;
            }
            let Ok(another) = Arc::clone(&self.permits).acquire_owned().await else { return };
            permit = another;
        }
    }
}

/// Sends an answer.
async fn respond(request: &service::Request, answer: &Result<serde_json::Value, RpcError>) {
    match serde_json::to_vec(answer) {
        Ok(bytes) => {
            if let Err(e) = request.respond(Ok(bytes.into())).await {
                warn!(error = %e, "could not send an answer");
            }
        }
        Err(e) => warn!(error = %e, "could not encode an answer as JSON"),
    }
}

/// Records an answer and its duration in the metrics.
fn count_answer(endpoint: String, answer: &Result<serde_json::Value, RpcError>, took: Duration) {
    let result = match answer {
        Ok(_) => "ok",
        Err(RpcError::Refused(_)) => "refused",
        Err(RpcError::Unavailable(_)) => "unavailable",
    };
    metrics::histogram!(metric::RPC_SECONDS, "endpoint" => endpoint.clone()).record(took);
    metrics::counter!(metric::RPC_REQUESTS, "endpoint" => endpoint, "result" => result).increment(1);
}

/// The reason why a request reaches no handler.
#[derive(Debug, PartialEq, Eq)]
enum NotAdmitted {
    /// The request gets no answer at all: an attacker may have chosen the subject of the answer.
    BreaksRules(&'static str),
    /// The body has more than [`MAX_BODY`] bytes.
    TooLarge,
}

impl From<&'static str> for NotAdmitted {
    fn from(why: &'static str) -> Self {
        Self::BreaksRules(why)
    }
}

/// Checks that the request names an actor, that the answer would go into an inbox of that kind of requester, and that
/// the body is not too large.
fn admit(message: &async_nats::Message, requester: Requester) -> Result<Incoming, NotAdmitted> {
    let named_actor = message.headers.as_ref().and_then(|h| h.get(header::ACTOR)).map(|a| a.as_str().parse::<Actor>());
    let (inboxes, actor, trace) = match requester {
        Requester::Machine => {
            let machine = subject::requesting_machine(&message.subject).ok_or("no machine in the subject")?;
            // Machines send their requests from another NATS account. For such a request the broker itself makes up the
            // reply subject, and carries the answer to the inbox of the machine's connection.
            (vec![subject::BROKER_REPLIES.to_owned()], Actor::Machine(machine), opentelemetry::Context::new())
        }
        Requester::Edge | Requester::Platform => {
            let actor = named_actor.ok_or("no actor")?.map_err(|_| "unreadable actor")?;
            let edge = [subject::UI_INBOX, subject::OPERATOR_INBOX];
            let own = [subject::SERVICES_INBOX, subject::PROJECTOR_INBOX, subject::NOTIFIER_INBOX];
            let inboxes = edge.iter().chain(own.iter().filter(|_| matches!(requester, Requester::Platform)));
            (inboxes.map(|s| (*s).to_owned()).collect(), actor, trace::extract(message.headers.as_ref()))
        }
    };
    let reply = message.reply.as_ref().ok_or("no reply subject")?;
    let holds_reply = |inbox: &String| reply.strip_prefix(inbox.as_str()).is_some_and(|rest| rest.starts_with('.'));
    if !inboxes.iter().any(holds_reply) {
        return Err("the reply subject is no inbox of this kind of requester".into());
    }
    if message.payload.len() > MAX_BODY {
        return Err(NotAdmitted::TooLarge);
    }
    Ok(Incoming { subject: message.subject.to_string(), actor, body: message.payload.clone(), trace })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::MachineId;

    fn request(subject: &str, reply: Option<&str>) -> async_nats::Message {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACTOR, "platform");
        async_nats::Message {
            subject: subject.into(),
            reply: reply.map(Into::into),
            payload: Bytes::from_static(b"{}"),
            headers: Some(headers),
            status: None,
            description: None,
            length: 2,
        }
    }

    #[test]
    fn an_answer_goes_only_into_the_requesters_own_inbox() {
        let (machine, other) = (MachineId::generate(), MachineId::generate());
        let to = subject::machine_command(machine, "accept");
        assert!(admit(&request(&to, Some("_R_.x.1")), Requester::Machine).is_ok());
        for foreign in [
            // Inboxes of machines: the broker replaces these subjects before a machine's request arrives.
            Some(format!("_INBOX.{other}.x.1")),
            Some(format!("_INBOX.{machine}.x.1")),
            // Subjects that only resemble the reply subjects of the broker.
            Some("_R_".to_owned()),
            Some("_R_x.1".to_owned()),
            // The acknowledgement of a message in a stream, an event, and the inbox of the web server.
            Some("$JS.ACK.DISPATCH.x.1.1.1.1.0".to_owned()),
            Some("market.account.x.event".to_owned()),
            Some("_INBOX.ui.x".to_owned()),
            None,
        ] {
            assert!(admit(&request(&to, foreign.as_deref()), Requester::Machine).is_err(), "{foreign:?}");
        }
        assert!(admit(&request("cmd.job.submit", Some("_INBOX.services.1")), Requester::Edge).is_err());
    }

    #[test]
    fn a_machine_speaks_only_for_itself_whatever_its_header_says() {
        let machine = MachineId::generate();
        let to = subject::machine_command(machine, "accept");
        let incoming = admit(&request(&to, Some("_R_.1")), Requester::Machine);
        assert_eq!(incoming.map(|i| i.actor).ok(), Some(Actor::Machine(machine)));
    }
}
