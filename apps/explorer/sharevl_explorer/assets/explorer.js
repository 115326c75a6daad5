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
  submit(event.target);
});
root.addEventListener("change", (event) => {
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
    const typing = /INPUT|SELECT/.test(document.activeElement.tagName);
    if (String(now) !== shown && !typing) await show();
  }, 2000);
}
