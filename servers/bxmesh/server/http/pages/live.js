"use strict";

// One conversation over a web socket: what is said appears as it is said.

const field = (id) => document.getElementById(id);
let socket = null;
const drafts = new Map();

function say(text, kind = "") {
  const box = document.createElement("div");
  box.className = `event ${kind}`;
  const line = document.createElement("p");
  line.textContent = text;
  box.append(line);
  field("events").append(box);
  return line;
}

function draft(event) {
  const name = `${event.turn} ${event.participant_id}`;
  if (!drafts.has(name)) drafts.set(name, say(`${event.participant_id}: `));
  return drafts.get(name);
}

const shown = {
  conversation_started(event) {
    field("conversation").value = event.conversation.conversation_id;
    say(`Question: ${event.conversation.message}`, "question");
  },
  text_delta(event) {
    draft(event).textContent += event.text;
  },
  agent_response(event) {
    const answer = event.response;
    const line = draft(answer);
    const sure = answer.confidence === null ? "" : ` (${Math.round(100 * answer.confidence)} %)`;
    line.textContent = `${answer.participant_id}: ${answer.error ? answer.error.detail : answer.text}${sure}`;
    line.parentElement.classList.add("answer");
    if (answer.error) line.parentElement.classList.add("error");
    drafts.delete(`${answer.turn} ${answer.participant_id}`);
  },
  turn_ended() {},
  consensus_update(event) {
    say(`Consensus, ${Math.round(100 * event.consensus.confidence)} %: ${event.consensus.text}`, "consensus");
  },
  participant_left(event) {
    say(`${event.participant_id} is left out: ${event.reason.detail}`, "error");
  },
  conversation_ended(event) {
    field("state").textContent = event.conversation.state || "ended";
    if (event.conversation.error) say(event.conversation.error.detail, "error");
  },
  error(event) {
    field("state").textContent = "failed";
    say(`${event.problem.detail} (${event.problem.reason}, trace ${event.problem.trace_id})`, "error");
  },
  heartbeat() {},
};

function connect(name, first) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const key = field("key").value.trim();
  const protocols = key ? ["bxmesh.v1", `bxmesh.bearer.${key}`] : ["bxmesh.v1"];
  socket = new WebSocket(`${scheme}://${location.host}/ws/${encodeURIComponent(name)}`, protocols);
  socket.addEventListener("open", () => {
    field("state").textContent = "connected";
    if (!key) socket.send(JSON.stringify({ type: "authenticate", token: "none" }));
    if (first) socket.send(JSON.stringify(first));
  });
  socket.addEventListener("message", (message) => {
    const event = JSON.parse(message.data);
    if (shown[event.type]) shown[event.type](event);
  });
  socket.addEventListener("close", () => {
    socket = null;
    if (field("state").textContent === "connected") field("state").textContent = "not connected";
  });
}

field("form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const message = field("message").value.trim();
  const turns = Number(field("turns").value) || 0;
  const name = field("conversation").value.trim();
  if (name) {
    const next = message ? { type: "message", message, turns } : null;
    if (!socket) connect(name, next);
    else if (next) socket.send(JSON.stringify(next));
    return;
  }
  let participants = [];
  try {
    participants = JSON.parse(field("participants").value.trim() || "[]");
  } catch (error) {
    say(`Participants: ${error.message}`, "error");
    return;
  }
  field("events").textContent = "";
  const begin = { type: "begin", message, turns, participants };
  if (socket) socket.send(JSON.stringify(begin));
  else connect("new", begin);
});

field("cancel").addEventListener("click", () => {
  if (socket) socket.send(JSON.stringify({ type: "cancel" }));
});
