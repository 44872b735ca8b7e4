// Keeping and dropping proposed images, by click and by key. Marks stay in this browser until the
// word is given.
"use strict";
(() => {
  const main = document.querySelector("main.curate[data-waits]");
  if (!main) return;
  const update = main.dataset.update;
  const items = [...main.querySelectorAll(".proposed [data-id]")];
  const panel = main.querySelector(".word");
  const [count, token, said] = [".count", ".token", ".word .said"].map((s) => main.querySelector(s));
  const buttons = [...panel.querySelectorAll("button")];
  const store = `curation:${update}`;
  const dropped = new Set(JSON.parse(localStorage.getItem(store) || "[]"));
  let here = 0;

  function show() {
    for (const item of items) {
      const kept = !dropped.has(item.dataset.id);
      item.classList.toggle("kept", kept);
      item.classList.toggle("dropped", !kept);
      item.setAttribute("aria-checked", String(kept));
    }
    count.textContent = `${items.length - dropped.size} of ${items.length} are kept.`;
    localStorage.setItem(store, JSON.stringify([...dropped]));
  }

  function mark(item, drop) {
    if (drop === undefined) drop = !dropped.has(item.dataset.id);
    dropped[drop ? "add" : "delete"](item.dataset.id);
    show();
  }

  const visible = () => items.filter((i) => i.offsetParent !== null);
  function go(steps) {
    const seen = visible();
    if (!seen.length) return;
    const at = Math.max(0, seen.indexOf(items[here])) + steps;
    items[here].tabIndex = -1;
    here = items.indexOf(seen[Math.min(Math.max(at, 0), seen.length - 1)]);
    items[here].tabIndex = 0;
    items[here].focus();
  }
  function row() {
    const top = items[here].offsetTop;
    return visible().filter((i) => i.offsetTop === top).length || 1;
  }

  items.forEach((item, n) => {
    item.addEventListener("click", (e) => { if (!e.target.closest("a")) { go(n - here); mark(item); } });
    item.addEventListener("focus", () => { items[here].tabIndex = -1; here = n; item.tabIndex = 0; });
  });
  addEventListener("keydown", (e) => {
    if (e.target === token || e.ctrlKey || e.metaKey || e.altKey || buttons.includes(e.target)) return;
    const act = {
      ArrowRight: () => go(1), ArrowLeft: () => go(-1),
      ArrowDown: () => go(row()), ArrowUp: () => go(-row()),
      k: () => { mark(items[here], false); go(1); }, d: () => { mark(items[here], true); go(1); },
      " ": () => mark(items[here]), u: () => main.classList.toggle("only-dropped"),
    }[e.key];
    if (act) { e.preventDefault(); act(); }
  });

  async function word(approve) {
    sessionStorage.setItem("curation:token", token.value);
    buttons.forEach((b) => { b.disabled = true; });
    said.textContent = "…";
    try {
      const answer = await fetch(`/api/curation/${encodeURIComponent(update)}/word`, {
        method: "POST",
        headers: { authorization: `Bearer ${token.value}`, "content-type": "application/json" },
        body: JSON.stringify({ approve, drop: approve ? [...dropped] : [] }),
      });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error?.message || `refused: ${answer.status}`);
      localStorage.removeItem(store);
      said.textContent = "It is written down; the update goes on when the controller has read it.";
    } catch (error) {
      said.textContent = error.message;
      buttons.forEach((b) => { b.disabled = false; });
    }
  }
  panel.querySelector(".approve").addEventListener("click", () => word(true));
  panel.querySelector(".reject").addEventListener("click", () => word(false));
  token.value = sessionStorage.getItem("curation:token") || "";
  for (const id of [...dropped]) if (!items.some((i) => i.dataset.id === id)) dropped.delete(id);
  panel.hidden = false;
  show();
})();
