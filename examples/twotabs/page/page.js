"use strict";
const store = new URLSearchParams(location.search).get("store") === "plain" ? "plain" : "tombstore";
const $ = (id) => document.getElementById(id);
document.querySelector(`[data-store=${store}]`).setAttribute("aria-current", "true");
for (const n of [1, 2]) $("tab" + n).src = `/${store}/tab/${n}`;
$("finish").onclick = () => fetch(`/${store}/finish`, { method: "POST" });

const cell = (kind, text, className) => {
  const e = document.createElement(kind);
  e.textContent = text;
  if (className) e.className = className;
  return e;
};

const show = (message) => {
  const view = JSON.parse(message.data);
  $("finish").disabled = !view.Waiting;
  $("log").replaceChildren(...view.Log.map((e) => {
    const row = document.createElement("tr");
    row.append(cell("td", e.Who), cell("td", e.What), cell("td", e.Answer), cell("td", e.Cookie));
    return row;
  }).reverse());
  if (view.Sessions.length) $("sessions").replaceChildren(...view.Sessions.map((s) =>
    cell("li", `session ${s.Name}: ${s.State}`, s.State.replace(" ", "-"))));
};

// A browser keeps a page that was left, to go back to, and would keep its connection, of which it has
// no more than six.
let events;
addEventListener("pagehide", () => events.close());
addEventListener("pageshow", () => {
  events = new EventSource(`/${store}/events`);
  events.onmessage = show;
});
