"use strict";
const $ = (id) => document.getElementById(id);
let events;
const listen = () => {
  events = new EventSource("events");
  events.onmessage = () => {
    events.close();
    $("message").textContent = "You have been logged out.";
    $("in").hidden = true;
    $("out").hidden = false;
  };
  events.onerror = () => { // it tries again by itself, but not after an answer such as 503
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
};
// A browser keeps a page that was left, to go back to, and would keep its connection, of which it has
// no more than six.
addEventListener("pagehide", () => events.close());
addEventListener("pageshow", listen);
