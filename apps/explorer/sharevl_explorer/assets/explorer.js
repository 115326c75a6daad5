// Navigation by URL, keys, and following. Runs once when the component loads; `element` and `server` are Gradio's.
const root = element.querySelector("#sharevl");
const [busy, notice, page, live] = ["busy", "notice", "page", "live quiet"].map((kind) => {
  const part = document.createElement(kind.startsWith("live") ? "span" : "div");
  part.className = kind;
  return part;
});
notice.setAttribute("role", "status");
page.textContent = "loading …";
root.replaceChildren(busy, notice, page);

const follows = root.dataset.follow === "1", TOP = { y: 0, focus: null, open: [] }, EVERY = 2000;
const LOST = "No connection to the explorer. Is it still running? What you see stays; this page goes on by itself when " +
  "the explorer answers again. If it does not, reload it.";
const FAILED = "The explorer could not make this page; its terminal says why.";
let asked = 0, kept = null, lost = false, newest = -1;

// Gradio answers `undefined`, and throws nothing, where the server cannot be reached or fails.
async function call(name, given) {
  const answer = await Promise.resolve(server[name](given)).catch(() => undefined);
  if (answer === undefined) throw new Error(`no answer to ${name}`);
  return answer;
}

// Where a reader is: how far down, at which control, with which details open. By names, for a page that is made anew.
const controls = () => [...page.querySelectorAll("a[href], button, input, select, textarea, summary")];
const nameOf = (control) => control.tagName + (control.getAttribute("name") ?? control.getAttribute("aria-label")
  ?? control.textContent.replace(/[↑↓]/g, "").trim());
const detailsOf = () => [...page.querySelectorAll("details")].map((part, n) => [`${n} ${nameOf(part.firstChild)}`, part]);

function here() {
  const active = document.activeElement, focus = page.contains(active) ? { name: nameOf(active) } : null;
  if (focus) {
    focus.nth = controls().filter((control) => nameOf(control) === focus.name).indexOf(active);
    if (/search|text/.test(active.type)) focus.typed = [active.value, active.selectionStart, active.selectionEnd];
  }
  return { y: window.scrollY, focus, open: detailsOf().filter(([, part]) => part.open).map(([name]) => name) };
}

function restore({ y, focus, open }) {
  for (const [name, part] of detailsOf()) part.open ||= open.includes(name);
  const control = focus && controls().filter((control) => nameOf(control) === focus.name)[focus.nth];
  control?.focus({ preventScroll: true });
  if (control && focus.typed) {
    control.value = focus.typed[0];
    control.setSelectionRange(focus.typed[1], focus.typed[2]);
  }
  window.scrollTo(0, y);
}

// Each entry of the browser's history has a name under which its place is kept while another is shown.
const places = new Map(JSON.parse(sessionStorage.getItem("sharevl-places") ?? "[]"));
const fresh = () => `${Date.now()}-${Math.random()}`;
let entry = history.state?.sharevl ?? fresh(), shown = entry;
const returning = () => places.get(entry) ?? TOP;
history.replaceState({ ...history.state, sharevl: entry }, "");
history.scrollRestoration = "manual";

// Fetches the page of the URL; `place` gives where its reader is, once the old page is about to go.
async function show(place = here) {
  const mine = ++asked, waiting = setTimeout(() => root.setAttribute("aria-busy", "true"), 150);
  let html;
  try {
    html = await call("view", location.search);
  } catch {
    return mine === asked ? fail() : undefined;
  } finally {
    clearTimeout(waiting);
    if (mine === asked) root.removeAttribute("aria-busy");
  }
  if (mine !== asked) return;
  const there = place(), open = page.querySelector("dialog[open]"), moved = shown !== entry;
  replace(html);
  if (open) page.querySelector("dialog").showModal();
  restore(there);
  if (moved && document.activeElement === document.body) page.querySelector("h1")?.focus({ preventScroll: true });
  shown = entry;
  root.dataset.shown = location.search;
}

// Bars that are wider than the page begin at their end, where the newest steps are; a reader who went back stays there.
const bars = () => page.querySelector(".scroll:has(> svg.bars)");
const behind = (part) => part ? part.scrollWidth - part.clientWidth - part.scrollLeft : 0;

function replace(html) {
  const back = behind(bars());
  kept = page.querySelector("section.try:has(form)") ?? kept;
  page.innerHTML = html;
  if (bars()) bars().scrollLeft = bars().scrollWidth - bars().clientWidth - back;
  const trial = page.querySelector("section.try:has(form)"), model = (part) => part?.querySelector("header").textContent;
  if (trial && model(trial) === model(kept)) trial.replaceWith(kept); // with its question, image and answers
  document.title = page.querySelector(".frame").dataset.title;
  if (follows) page.querySelector("header.bar strong").after(live);
  if (!lost) tell("");
}

function tell(message, ...more) {
  notice.replaceChildren(message, ...more);
  notice.hidden = !message;
}

async function fail() {
  if (await call("revision", null).then(() => true, () => false)) return tell(FAILED);
  lose();
}

function lose() {
  tell(LOST);
  mark(null);
  if (lost) return;
  lost = true;
  setTimeout(retry, EVERY);
}

async function retry() {
  const found = await call("revision", null).catch(() => null);
  if (!found) return setTimeout(retry, EVERY);
  lost = false;
  tell("");
  mark(found);
  const same = root.dataset.shown === location.search;
  if (!same || page.querySelector(".frame").dataset.revision !== String(found.revision)) show(same ? here : returning);
}

// Whether the run goes on, and when its newest step was written: by the day too where that was not today.
function mark(found) {
  if (!found) return void (live.textContent = "○ no connection", live.title = "");
  const date = found.written === null ? null : new Date(1000 * found.written);
  const today = date?.toDateString() === new Date().toDateString();
  const step = date ? `, step ${found.step} at ${today ? date.toLocaleTimeString() : date.toLocaleString()}` : "";
  const told = (found.ended ? "✓ finished" : "● live") + step;
  if (live.textContent !== told) live.textContent = told;
  live.title = (found.ended ? "the run has ended; " : "") + "the newest step, and when it was written";
}

const edited = () => [...page.querySelectorAll("form.filters [name]")].some((field) =>
  field.type === "checkbox" ? field.checked !== field.defaultChecked
    : field.tagName === "INPUT" ? field.value !== field.defaultValue
    : !field.selectedOptions[0]?.defaultSelected && field.selectedIndex > 0);
const reading = () => edited() || !getSelection().isCollapsed ||
  page.querySelector("section.step, section.problem, section.response, section.try");

// Asks for news; a page that shows the run's course is made anew, another one is left to its reader.
async function follow() {
  setTimeout(follow, EVERY);
  if (lost) return;
  const found = await call("revision", null).catch(() => null), frame = page.querySelector(".frame");
  if (!found) return lose();
  const later = newest >= 0 && found.step > newest;
  newest = found.step;
  mark(found);
  if (!frame || frame.dataset.revision === String(found.revision)) return;
  if (!reading()) return show();
  frame.dataset.revision = found.revision;
  if (later) offer(found.step);
}

function offer(step) {
  const link = document.createElement("a"), close = document.createElement("button");
  link.href = `?view=step&step=${step}`;
  link.textContent = `Step ${step} is new: open it`;
  close.textContent = "✕";
  close.ariaLabel = "leave it";
  close.onclick = () => tell("");
  tell(link, close);
}

function go(href, stays = false) {
  if (href.startsWith("#")) return;
  if (href === location.search) return show(); // no entry of its own in the history
  places.set(shown, here());
  entry = fresh();
  history.pushState({ sharevl: entry }, "", href);
  return show(stays ? here : returning);
}

function submit(form) {
  const query = new URLSearchParams(location.search);
  for (const field of form.querySelectorAll("[name]")) {
    const value = field.type === "checkbox" ? (field.checked ? field.value : "") : field.value;
    value ? query.set(field.name, value) : query.delete(field.name);
  }
  query.delete("sheet");
  return go("?" + query, true);
}

// Reads a file as base64; null where none is chosen.
async function encoded(file) {
  if (!file) return null;
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

function say(place, message) {
  const note = document.createElement("p");
  note.className = "note";
  note.setAttribute("role", "alert");
  note.textContent = message;
  place.replaceChildren(note);
}

async function ask(form) {
  const place = form.parentElement.querySelector(".answers"), button = form.querySelector("button");
  const file = form.image.files[0], most = Number(form.image.dataset.most);
  if (file && file.size > most) return say(place, `The image file is larger than ${most / 2 ** 20} MiB.`);
  button.disabled = true;
  place.textContent = "asking …";
  try {
    const image = await encoded(file);
    const given = { question: form.question.value, answer: form.answer.value, image };
    place.innerHTML = await call("attempt", { ...given, samples: form.samples.value, tokens: form.tokens.value });
  } catch (error) {
    const unread = error instanceof DOMException;
    say(place, unread ? `The image file cannot be read (${error.message}).`
      : "The explorer did not answer. Your question is kept: ask again once it is there.");
    if (!unread) fail();
  }
  button.disabled = false;
}

function preview(field) {
  const place = field.form.querySelector(".preview"), file = field.files[0];
  const old = place.querySelector("img");
  if (old) URL.revokeObjectURL(old.src);
  if (!file) return void (place.textContent = "none chosen");
  const image = new Image();
  image.onerror = () => (place.textContent = "no image that can be shown");
  image.src = URL.createObjectURL(file);
  place.replaceChildren(image);
}

function moveFocus(by) {
  const rows = [...root.querySelectorAll("[data-row]")];
  const at = rows.indexOf(document.activeElement);
  rows[Math.max(0, Math.min(rows.length - 1, at + by))]?.focus();
  return rows.length > 0;
}

// Keys that are pressed while a page is on its way are for that page: they wait for it, a held key's repeats do not.
let keys = Promise.resolve(), coming = 0;

function followKey(key) {
  coming += 1;
  const link = () => root.querySelector(`[data-key="${CSS.escape(key)}"]`)?.getAttribute("href");
  keys = keys.then(() => link() && go(link())).catch(() => {}).then(() => (coming -= 1));
}

function pressed(event) {
  const typing = /INPUT|SELECT|TEXTAREA/.test(event.target.tagName);
  if (event.key === "Escape") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || page.querySelector("dialog[open]")) return;
  const link = root.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (event.key === "?") root.querySelector("dialog").showModal();
  else if (event.key === "/" && root.querySelector("input[type=search]")) root.querySelector("input[type=search]").focus();
  else if (link && !(event.repeat && coming)) followKey(event.key);
  else if (link) void 0;
  else if (!("jk".includes(event.key) && moveFocus(event.key === "j" ? 1 : -1))) return;
  event.preventDefault();
}

root.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    go(link.getAttribute("href"), link.matches("thead th *, .tabs *, .filters *, .note *"));
  }
  if (event.target.closest("[data-help]")) root.querySelector("dialog").showModal();
});
root.addEventListener("submit", (event) => {
  if (event.target.method === "dialog") return;
  event.preventDefault();
  event.target.matches(".try") ? ask(event.target) : submit(event.target);
});
root.addEventListener("input", ({ target }) => { // a field for one answer a line is as high as what is in it
  if (target.matches("form.try [name=answer]")) target.rows = Math.min(8, Math.max(2, target.value.split("\n").length));
});
root.addEventListener("change", (event) => {
  if (event.target.matches("form.try [type=file]")) preview(event.target);
  if (event.target.matches("form.filters select, form.filters [type=checkbox]")) submit(event.target.form);
});
document.addEventListener("keydown", pressed);
window.addEventListener("popstate", (event) => {
  places.set(shown, here());
  entry = event.state?.sharevl ?? fresh();
  if (!event.state?.sharevl) history.replaceState({ sharevl: entry }, "");
  show(returning);
});
window.addEventListener("pagehide", () => {
  places.set(shown, here());
  sessionStorage.setItem("sharevl-places", JSON.stringify([...places].slice(-200)));
});

tell("");
show(returning);
if (follows) follow();
