// Navigation by URL, keys, and following. Runs once when the component loads; `element` and `server` are Gradio's.
const root = element.querySelector("#sharevl");
let asked = 0;

async function show() {
  const mine = ++asked;
  let html;
  try {
    html = await server.view(location.search);
  } catch (error) {
    root.textContent = `The server does not answer (${error}). Is it still running? Reload to try again.`;
    return;
  }
  if (mine !== asked) return;
  const open = root.querySelector("dialog[open]");
  root.innerHTML = html;
  if (open) root.querySelector("dialog").showModal();
  root.dataset.shown = location.search;
}

function go(href) {
  if (href.startsWith("#")) return;
  history.pushState(null, "", href);
  window.scrollTo(0, 0);
  return show();
}

function submit(form) {
  const query = new URLSearchParams(location.search);
  for (const field of form.querySelectorAll("[name]")) {
    const value = field.type === "checkbox" ? (field.checked ? field.value : "") : field.value;
    value ? query.set(field.name, value) : query.delete(field.name);
  }
  query.delete("page");
  return go("?" + query);
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
  const place = root.querySelector(".answers"), button = form.querySelector("button");
  const file = form.image.files[0], most = Number(form.image.dataset.most);
  if (file && file.size > most) return say(place, `The image file is larger than ${most / 2 ** 20} MiB.`);
  button.disabled = true;
  place.textContent = "asking …";
  try {
    const given = { question: form.question.value, answer: form.answer.value, image: await encoded(file) };
    place.innerHTML = await server.attempt({ ...given, samples: form.samples.value, tokens: form.tokens.value });
  } catch (error) {
    say(place, `The server does not answer (${error}).`);
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

function pressed(event) {
  const typing = /INPUT|SELECT|TEXTAREA/.test(event.target.tagName);
  if (event.key === "Escape") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const link = root.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (event.key === "?") root.querySelector("dialog").showModal();
  else if (event.key === "/" && root.querySelector("input[type=search]")) root.querySelector("input[type=search]").focus();
  else if (link) go(link.getAttribute("href"));
  else if (!("jk".includes(event.key) && moveFocus(event.key === "j" ? 1 : -1))) return;
  event.preventDefault();
}

root.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    go(link.getAttribute("href"));
  }
  if (event.target.closest("[data-help]")) root.querySelector("dialog").showModal();
  if (event.target.closest("[data-theme]")) {
    localStorage.setItem("sharevl-theme", document.body.classList.toggle("dark") ? "dark" : "light");
  }
});
root.addEventListener("submit", (event) => {
  if (event.target.method === "dialog") return;
  event.preventDefault();
  event.target.matches(".try") ? ask(event.target) : submit(event.target);
});
root.addEventListener("change", (event) => {
  if (event.target.matches("form.try [type=file]")) preview(event.target);
  if (event.target.matches("form.filters select, form.filters [type=checkbox]")) submit(event.target.form);
});
document.addEventListener("keydown", pressed);
window.addEventListener("popstate", () => show());

const theme = localStorage.getItem("sharevl-theme");
if (theme) document.body.classList.toggle("dark", theme === "dark");

show();
if (root.dataset.follow === "1") {
  setInterval(async () => {
    const shown = root.querySelector(".frame")?.dataset.revision;
    const now = await server.revision(null).catch(() => shown);
    const typing = /INPUT|SELECT/.test(document.activeElement.tagName) || root.querySelector("form.try");
    if (String(now) !== shown && !typing) await show();
  }, 2000);
}
