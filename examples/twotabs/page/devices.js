"use strict";
const full = new URLSearchParams(location.search).get("full") === "evict" ? "evict" : "refuse";
document.querySelector(`[data-full=${full}]`).setAttribute("aria-current", "true");
for (const frame of document.querySelectorAll("iframe")) frame.src = `/devices/${full}/${frame.id}/`;
