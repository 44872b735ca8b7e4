// Takes the token of the link, once, and shows the result.
"use strict";
(() => {
  const main = document.getElementById("review");
  if (!main) return;
  const review = document.body.dataset.review;
  const box = document.getElementById("enter"), problem = document.getElementById("enter-problem");
  async function enter(token) {
    const answer = await fetch(`/api/review/${review}/enter`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token }) });
    const told = await answer.json();
    if (answer.ok && told.role === "lead") return location.reload();
    problem.textContent = answer.ok ? `${told.name} may vote, not see the result.` : told.error.message;
    box.hidden = false;
  }
  const lost = () => { problem.textContent = "The server does not answer."; box.hidden = false; };
  document.getElementById("enter-form").addEventListener("submit", (e) => { e.preventDefault(); enter(document.getElementById("token").value.trim()).catch(lost); });
  function begin() {
    const token = location.hash.slice(1);
    history.replaceState(null, "", location.pathname); // the token is nowhere to be seen
    if (token) enter(token).catch(lost); else box.hidden = false;
  }
  addEventListener("hashchange", begin);
  begin();
})();
