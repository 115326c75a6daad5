// Pictures in their full size: a click opens one, fitted to the window; a click on it there shows it 1:1 and back.
{
  const viewer = document.createElement("dialog"), pane = document.createElement("button"), large = new Image();
  const told = document.createElement("span"), close = document.createElement("button"), foot = document.createElement("p");
  viewer.className = "enlarged";
  viewer.ariaLabel = "picture";
  pane.className = "pane";
  pane.type = close.type = "button";
  large.className = "large";
  close.textContent = "✕";
  close.ariaLabel = "close";
  pane.append(large);
  foot.append(told, close);
  viewer.append(pane, foot);

  // Pixels that are larger than the screen's stay squares; those that are smaller are blended.
  const fit = () => {
    const whole = viewer.classList.contains("whole");
    const scale = whole ? 1 : Math.min(pane.clientWidth / large.naturalWidth, pane.clientHeight / large.naturalHeight);
    viewer.classList.toggle("coarse", scale > 1);
    told.textContent = `${large.naturalWidth.toLocaleString("en")} × ${large.naturalHeight.toLocaleString("en")} pixels, ` +
      (whole ? "1:1" : `shown at ${Math.round(100 * scale)} %`);
    pane.title = whole ? "fit to the window" : "1:1";
  };
  const open = (picture) => {
    viewer.classList.remove("whole");
    [large.src, large.alt] = [picture.currentSrc || picture.src, picture.alt];
    root.append(viewer); // part of the page while it is open alone
    viewer.showModal();
    large.decode().then(fit, () => (told.textContent = "the picture cannot be shown"));
  };
  root.addEventListener("click", (event) => {
    const picture = event.target.closest(".enlarge")?.querySelector("img");
    if (!picture || event.ctrlKey || event.metaKey || event.shiftKey) return; // those open the link elsewhere
    event.preventDefault();
    event.stopPropagation();
    open(picture);
  }, true);
  pane.onclick = () => {
    viewer.classList.toggle("whole");
    fit();
  };
  close.onclick = () => viewer.close();
  viewer.onclose = () => viewer.remove();
  viewer.addEventListener("keydown", (event) => event.stopPropagation()); // the page's keys are not the picture's
  window.addEventListener("resize", () => viewer.open && fit());
  window.addEventListener("popstate", () => viewer.close());
}
