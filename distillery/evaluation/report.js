"use strict";
// Wins and losses: filtered by what stands in the address (#search=refund&outcome=worse+than+teacher),
// so that a link leads to what somebody has found. Texts are only ever put in as text.
const PAGE = 20, SHORT = 400, STUDENT = "student";
const $ = (id) => document.getElementById(id);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function addContents() {
  for (const heading of document.querySelectorAll("h2")) {
    const link = element("a", "", heading.textContent);
    link.href = "#" + heading.id;
    $("contents").append(link);
  }
}

function unpack([id, prompt, references, answers, lead, slices]) {
  const scores = Object.fromEntries(answers.map(([name, , score]) => [name, score]));
  const outcomes = [];
  for (const [name, score] of Object.entries(scores)) {
    if (name === STUDENT || score === null || scores[STUDENT] === null) continue;
    if (scores[STUDENT] < score) outcomes.push("worse than " + name);
    if (scores[STUDENT] > score) outcomes.push("better than " + name);
  }
  const texts = [id, prompt, ...references, ...answers.map((answer) => answer[1] || "")];
  return { id, prompt, references, answers, lead, slices, outcomes, text: texts.join("\n").toLowerCase() };
}

function addOptions(select, values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  for (const value of [...counts.keys()].sort()) {
    select.append(new Option(`${value} (${counts.get(value).toLocaleString("en")})`, value));
  }
  select.hidden = !counts.size;
}

function cutText(parent, text) {
  if (text.length <= SHORT) return parent.append(text);
  const shown = element("span", "", text.slice(0, SHORT) + "…");
  const more = element("button", "more", "show all");
  more.type = "button";
  more.onclick = () => { shown.textContent = text; more.remove(); };
  parent.append(shown, more);
}

function mark(score) {
  if (score === null) return "unscored";
  return score === 1 ? "✓" : score === 0 ? "✗" : (100 * score).toFixed(1) + " %";
}

function drawRow(row, colours) {
  const box = element("article", "row");
  cutText(box.appendChild(element("p")), row.prompt);
  const list = box.appendChild(element("dl"));
  const add = (title, className, text) => {
    list.append(element("dt", className, title));
    cutText(list.appendChild(element("dd")), text);
  };
  add("reference", "", row.references.join("\nor ") || "(none)");
  for (const [name, text, score] of row.answers) {
    add(`${name} ${mark(score)}`, "model-" + colours[name], text || (text === null ? "(no response)" : "(empty)"));
  }
  const said = [row.id, ...row.outcomes, ...row.slices].join(" · ");
  box.append(element("p", "slices", said));
  return box;
}

function browse() {
  const rows = JSON.parse($("rows").textContent).map(unpack);
  const colours = JSON.parse($("colours").textContent);
  const fields = ["search", "outcome", "slice"];
  let page = 0;
  addOptions($("outcome"), rows.flatMap((row) => row.outcomes));
  addOptions($("slice"), rows.flatMap((row) => row.slices));

  const show = () => {
    const search = $("search").value.toLowerCase(), outcome = $("outcome").value, slice = $("slice").value;
    const found = rows.filter((row) => (!search || row.text.includes(search))
      && (!outcome || row.outcomes.includes(outcome)) && (!slice || row.slices.includes(slice)));
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    const from = page * PAGE, shown = found.slice(from, from + PAGE);
    $("list").replaceChildren(...shown.map((row) => drawRow(row, colours)));
    $("found").textContent = found.length
      ? `${from + 1} to ${from + shown.length} of ${found.length.toLocaleString("en")}` : "no such row";
    $("back").disabled = page === 0;
    $("next").disabled = page === last;
  };
  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    if (![...given.keys()].some((key) => fields.includes(key))) return show();
    for (const name of fields) $(name).value = given.get(name) || "";
    page = (Number(given.get("page")) || 1) - 1;
    show();
  };
  const write = () => {
    const said = new URLSearchParams();
    for (const name of fields) if ($(name).value) said.set(name, $(name).value);
    if (page) said.set("page", page + 1);
    history.replaceState(null, "", "#" + said);
  };
  const changed = () => { page = 0; show(); write(); };
  const turn = (by) => { page += by; show(); write(); $("found").scrollIntoView(); };
  for (const name of fields) $(name).addEventListener("input", changed);
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("back").onclick = () => turn(-1);
  $("next").onclick = () => turn(1);
  addEventListener("hashchange", read);
  read();
}

addContents();
if ($("rows")) browse();
