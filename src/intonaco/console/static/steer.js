// Signing in, and asking for things: a button only opens the dialog that says what will happen.
"use strict";
(() => {
  const dialog = document.getElementById("ask");
  const find = (selector) => dialog.querySelector(selector);
  const [title, said, reason, to, act] = ["#ask-title", ".said", "[name=reason]", "[name=to]", "[data-do]"].map(find);
  let asked = null; // {url, key}

  async function call(method, url, body, headers = {}) {
    const answer = await fetch(url, {
      method,
      headers: body === undefined ? headers : { ...headers, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const told = answer.status === 204 ? {} : await answer.json();
    if (!answer.ok) throw new Error(told.error?.message || `refused: ${answer.status}`);
    return told;
  }

  const key = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");

  function open(button) {
    const d = button.dataset;
    asked = { url: d.ask, key: key() };
    title.textContent = { service: d.command, rollout: `${d.command} the rollout`, update: `${d.command} the update` }[d.of];
    find("[data-consequence]").textContent = d.consequence;
    find("[data-refused]").textContent = d.refused ? `Not now: ${d.refused}.` : "";
    find("[data-needed]").textContent = "wantsReason" in d ? "(needed)" : "(for the record)";
    find("[data-to]").hidden = d.command !== "rollback";
    reason.required = "wantsReason" in d;
    reason.value = to.value = said.textContent = "";
    act.textContent = `Yes, ${d.command}`;
    act.className = `do-${d.command}`;
    act.disabled = Boolean(d.refused) && d.command !== "rollback";
    dialog.showModal();
    reason.focus();
  }

  async function done(number) {
    for (let looks = 0; looks < 60; looks += 1) {
      const { outcome } = await call("GET", `/api/commands/${number}`);
      if (outcome) return outcome.ok ? outcome.text : `refused: ${outcome.text}`;
      await new Promise((go) => setTimeout(go, 250));
    }
    return "the controller has not answered yet; it is written down";
  }

  async function ask() {
    if (!reason.reportValidity()) return;
    act.disabled = true;
    said.textContent = "…";
    const body = { reason: reason.value };
    if (to.value.trim()) body.to = to.value.trim();
    try {
      const { command } = await call("POST", asked.url, body, { "idempotency-key": asked.key });
      said.textContent = await done(command);
    } catch (error) {
      said.textContent = error.message;
      act.disabled = false;
      asked.key = key(); // what was refused was not written down
    }
  }

  document.addEventListener("click", (e) => {
    const button = e.target.closest("button[data-ask]");
    if (button) open(button);
    if (e.target.closest("[data-sign-out]")) call("DELETE", "/api/session").then(() => location.reload());
  });
  find("[data-close]").addEventListener("click", () => dialog.close());
  act.addEventListener("click", ask);
  find("form").addEventListener("submit", (e) => e.preventDefault()); // Enter does not confirm
  document.querySelector("[data-sign-in]")?.addEventListener("submit", async (e) => {
    e.preventDefault();
    const form = e.target;
    try {
      await call("POST", "/api/session", { token: form.elements.token.value });
      location.reload();
    } catch (error) {
      form.querySelector("[role=status]").textContent = error.message;
    }
  });
})();
