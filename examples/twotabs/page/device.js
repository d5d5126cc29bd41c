"use strict";
const $ = (id) => document.getElementById(id);
const listen = () => {
  const events = new EventSource("events");
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
listen();
