// Voting: shows a pair, takes an answer, and goes on once the server has written it down. An answer
// is kept in this browser from the moment it is given until then, so neither a server that dies nor
// a page that is closed loses it.
"use strict";
(() => {
  const review = document.body.dataset.review;
  const at = (id) => document.getElementById(id);
  const pair = at("pair"), pictures = [at("left"), at("right")], buttons = ["left", "tie", "right"].map((c) => at(`choose-${c}`));
  let now = null; // what the server said last
  let asked = 0; // which of the questions
  let answers = {};
  let shownAt = 0;
  let ready = false; // both pictures are there
  let stuck = false; // a picture does not come: the pair can be skipped
  let sending = false;
  let patience = 0; // failed attempts in a row
  let later = 0; // when to ask again whether there is something to see

  // ---------------------------------------------------------------- what is not sent yet

  let memory = []; // where the browser keeps nothing
  const store = () => `intonaco-review-${review}-${now.reviewer}`; // another person's answers stay theirs
  const unsent = () => { try { return JSON.parse(localStorage.getItem(store())) || []; } catch { return memory; } };
  function keep(acts) {
    memory = acts;
    try { if (acts.length) localStorage.setItem(store(), JSON.stringify(acts)); else localStorage.removeItem(store()); } catch { /* in memory, then */ }
  }
  const key = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));

  async function ask(path, body) {
    const how = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(`/api/review/${review}/${path}`, { cache: "no-store", ...how });
    const told = await answer.json();
    return { status: answer.status, ok: answer.ok, told, text: answer.ok ? "" : told.error.message };
  }

  function say(text, bad = false) {
    at("status").textContent = text;
    at("status").classList.toggle("bad", bad);
  }

  // Sends all that is kept, oldest first. Ends only when nothing is left, or nothing can be sent.
  async function flush() {
    if (sending) return;
    sending = true;
    block();
    let refused = "";
    try {
      for (let acts = unsent(); acts.length; acts = unsent()) {
        const { path, body } = acts[0];
        let answer;
        try {
          answer = await ask(path, body);
        } catch {
          answer = { status: 0 };
        }
        if (answer.status === 401 || answer.status === 403) return needsLink(answer.text);
        if (answer.status === 0 || answer.status >= 500 || answer.status === 408 || answer.status === 429) {
          patience += 1;
          say("Not saved yet: the server does not answer. Your answer is kept here and sent again.", true);
          await wait(Math.min(5000, 300 * 2 ** Math.min(patience, 4)));
          continue;
        }
        patience = 0;
        keep(unsent().filter((a) => a.body.key !== body.key));
        if (answer.ok) { now = answer.told; say("Saved."); } else refused = answer.text;
      }
    } finally {
      sending = false;
    }
    if (refused) await look(); else show();
    if (refused) say(`Not counted: ${refused}`, true);
  }

  function send(path, body) {
    keep([...unsent(), { path, body: { key: key(), ...body } }]);
    say("Saving …");
    return flush();
  }

  async function look() {
    for (;;) {
      try {
        const answer = await ask("next");
        if (answer.ok) { now = answer.told; patience = 0; return unsent().length ? flush() : show(); }
        if (answer.status === 401 || answer.status === 403) return needsLink(answer.status === 403 ? answer.text : "");
        if (answer.status < 500) return say(answer.text, true);
      } catch { /* the server is away: again below */ }
      patience += 1;
      say("The server does not answer; trying again.", true);
      await wait(Math.min(5000, 300 * 2 ** Math.min(patience, 4)));
    }
  }

  // ---------------------------------------------------------------- who

  function needsLink(text = "") {
    at("vote").hidden = at("over").hidden = true;
    at("enter").hidden = false;
    at("enter-problem").textContent = text;
    say("");
  }

  async function enter(token) {
    try {
      const answer = await ask("enter", { token });
      if (!answer.ok) return needsLink(answer.text);
      if (answer.told.role === "lead") return location.replace(`/review/${review}/result`);
    } catch {
      return needsLink("The server does not answer.");
    }
    at("enter").hidden = true;
    return look();
  }

  // ---------------------------------------------------------------- what is seen

  function block() {
    ready = stuck = false;
    for (const b of [...buttons, at("skip"), at("undo")]) b.disabled = true;
  }

  function show() {
    const task = now.tasks[0];
    at("enter").hidden = true;
    at("who").textContent = now.reviewer;
    at("count").textContent = now.left ? `${now.done + 1} of about ${now.done + now.left}` : `${now.done} done`;
    at("bar").max = Math.max(1, now.done + now.left);
    at("bar").value = now.done;
    at("vote").hidden = !task;
    const before = at("over").hidden;
    at("over").hidden = !!task;
    if (!task) {
      at("over-text").textContent = now.over ? "This review is over. Nothing more is asked." : "You have seen every pair that needs your eyes. Should more come, it is shown here.";
      at("undo-over").hidden = !now.can_undo;
      if (before) at("over").focus();
      clearTimeout(later);
      if (!now.over) later = setTimeout(() => { if (!sending && !now.tasks.length) look(); }, 15000);
      return;
    }
    asked = 0;
    answers = {};
    at("prompt").textContent = task.prompt;
    at("guide").hidden = !now.guide;
    at("guide-text").textContent = now.guide;
    unzoom();
    load(task);
  }

  async function load(task) {
    if (!stuck) block();
    pair.classList.add("busy");
    shownAt = performance.now();
    for (const [k, side] of ["left", "right"].entries()) pictures[k].src = task[side];
    try {
      await Promise.all(pictures.map((p) => p.decode()));
    } catch {
      if (now.tasks[0] !== task) return;
      if (sending) return;
      say("A picture did not come; trying again. The pair can be skipped.", true);
      stuck = true;
      at("skip").disabled = false;
      at("undo").disabled = !now.can_undo;
      await wait(2000);
      if (now.tasks[0] === task && !sending) { for (const p of pictures) p.removeAttribute("src"); load(task); }
      return;
    }
    if (now.tasks[0] !== task || sending) return;
    if (at("status").classList.contains("bad")) say("");
    pair.classList.remove("busy");
    scaled();
    shownAt = performance.now();
    question();
    for (const side of now.tasks[1] ? ["left", "right"] : []) new Image().src = now.tasks[1][side];
  }

  function question() {
    const several = now.questions.length > 1 ? ` (${asked + 1} of ${now.questions.length})` : "";
    at("question").textContent = now.questions[asked].text + several;
    at("say").textContent = `Pair ${now.done + 1}. ${now.tasks[0].prompt}. ${at("question").textContent}`;
    ready = true;
    stuck = false;
    for (const b of [...buttons, at("skip")]) b.disabled = false;
    at("undo").disabled = !now.can_undo && asked === 0;
    if (document.activeElement === document.body) at("question").focus({ preventScroll: true });
  }

  // ---------------------------------------------------------------- what is done

  const seconds = () => (performance.now() - shownAt) / 1000;

  function choose(choice) {
    if (!ready) return;
    answers[now.questions[asked].name] = choice;
    pair.classList.add(`picked-${choice}`);
    setTimeout(() => pair.classList.remove(`picked-${choice}`), 160);
    if (asked + 1 < now.questions.length) { asked += 1; question(); return; }
    send("votes", { task: now.tasks[0].task, choices: answers, seconds: seconds() });
  }

  function skip() {
    if (ready || stuck) send("votes", { task: now.tasks[0].task, skip: true, seconds: seconds() });
  }

  function undo() {
    if (sending || !now || (now.tasks.length && !ready && !stuck)) return;
    if (asked > 0) { asked -= 1; delete answers[now.questions[asked].name]; question(); return; }
    if (now.can_undo) send("undo", {});
  }

  // ---------------------------------------------------------------- looking closer

  function zoom(event) {
    const box = (event?.currentTarget?.closest?.(".frame") || document.querySelector(".frame")).getBoundingClientRect();
    const x = event?.clientX ? (event.clientX - box.left) / box.width : 0.5, y = event?.clientY ? (event.clientY - box.top) / box.height : 0.5;
    pair.style.setProperty("--x", `${100 * x}%`);
    pair.style.setProperty("--y", `${100 * y}%`);
    pair.classList.add("zoomed");
    at("zoom").setAttribute("aria-pressed", "true");
  }

  function unzoom() {
    pair.classList.remove("zoomed");
    at("zoom").setAttribute("aria-pressed", "false");
  }

  const toggle = (event) => pair.classList.contains("zoomed") ? unzoom() : zoom(event);

  // 1 : 1 is one pixel of the picture on one of the screen.
  function scaled() {
    const scale = at("scale").value, dots = window.devicePixelRatio || 1;
    pair.classList.toggle("fit", scale === "fit");
    const larger = pictures[0].naturalWidth > pictures[0].closest(".frame").clientWidth * dots;
    pair.classList.toggle("smooth", scale === "fit" && larger);
    for (const p of pictures) {
      p.style.width = scale === "fit" ? "" : `${p.naturalWidth * scale / dots}px`;
      p.style.height = scale === "fit" ? "" : `${p.naturalHeight * scale / dots}px`;
    }
  }

  const keys = { ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"), ArrowDown: () => choose("tie"), t: () => choose("tie"), s: skip, u: undo };
  let held = false;
  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName)) return;
    const pressed = e.key.length === 1 ? e.key.toLowerCase() : e.key;
    if (pressed === "z") { if (!e.repeat) { held = true; zoom(); } e.preventDefault(); return; }
    if (!keys[pressed] || e.repeat || at("enter").hidden === false) return;
    e.preventDefault();
    keys[pressed]();
  });
  addEventListener("keyup", (e) => { if (held && e.key.toLowerCase() === "z") { held = false; unzoom(); } });
  for (const frame of document.querySelectorAll(".frame")) {
    frame.addEventListener("click", toggle);
    frame.addEventListener("mousemove", (e) => { if (pair.classList.contains("zoomed")) zoom(e); });
    frame.addEventListener("scroll", () => { for (const other of document.querySelectorAll(".frame")) if (other !== frame) { other.scrollTop = frame.scrollTop; other.scrollLeft = frame.scrollLeft; } });
  }
  // The second click of a double one is not an answer to the pair that the first one brought.
  const once = (act) => (e) => { if (e.detail < 2 || asked > 0) act(); };
  buttons.forEach((b, k) => b.addEventListener("click", once(() => choose(["left", "tie", "right"][k]))));
  at("skip").addEventListener("click", once(skip));
  at("undo").addEventListener("click", undo);
  at("undo-over").addEventListener("click", undo);
  at("zoom").addEventListener("click", toggle);
  try { at("scale").value = localStorage.getItem("intonaco-review-scale") || "fit"; } catch { /* as it is */ }
  at("scale").addEventListener("change", () => { try { localStorage.setItem("intonaco-review-scale", at("scale").value); } catch { /* for now */ } scaled(); at("scale").blur(); });
  addEventListener("resize", scaled);
  at("enter-form").addEventListener("submit", (e) => { e.preventDefault(); enter(at("token").value.trim()); });

  function begin() {
    const token = location.hash.slice(1);
    history.replaceState(null, "", location.pathname); // the token is nowhere to be seen
    return token ? enter(token) : look();
  }
  addEventListener("hashchange", begin); // the link, opened where the page is open already
  scaled();
  begin();
})();
