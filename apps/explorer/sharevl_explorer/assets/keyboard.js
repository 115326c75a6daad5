// What the keyboard reaches: one stop a chart, whose points arrow keys go through; what scrolls; the way past the bar.
{
  const SCROLLING = ".scroll, section.answer, .think > bdi, mark.boxed";
  const left = (link) => link.getBoundingClientRect().left;

  root.addEventListener("keydown", (event) => {
    const link = event.target.closest("svg[role=group] a");
    if (!link || event.ctrlKey || event.metaKey || event.altKey) return;
    const links = [...link.closest("svg").querySelectorAll("a")].sort((one, other) => left(one) - left(other));
    const at = links.indexOf(link), last = links.length - 1;
    const to = links[{ ArrowLeft: Math.max(at - 1, 0), ArrowRight: Math.min(at + 1, last), Home: 0, End: last }[event.key]];
    if (!to) return;
    event.preventDefault();
    for (const other of links) other.setAttribute("tabindex", other === to ? 0 : -1);
    to.focus();
  });

  root.addEventListener("click", (event) => {
    if (!event.target.closest(".skip")) return;
    event.preventDefault();
    event.stopPropagation();
    page.querySelector("h1").focus();
  }, true);

  // What is wider than its place can be scrolled by keys once the focus is on it; what is not is no stop.
  const reach = () => {
    for (const part of page.querySelectorAll(SCROLLING)) {
      if (part.scrollWidth <= part.clientWidth) {
        part.removeAttribute("tabindex");
        continue;
      }
      part.tabIndex = 0;
      part.role ??= "group";
      part.ariaLabel ??= "scrolls sideways";
    }
  };
  new MutationObserver(reach).observe(page, { childList: true });
  new ResizeObserver(reach).observe(page);
  page.addEventListener("toggle", reach, true);
}
