// A click or Enter enlarges a picture; arrow keys go to its neighbours, Escape or a click closes.
const pictures = [...document.querySelectorAll(".zoom img")];
const dialog = document.querySelector("dialog");
let current = null;
const visible = () => pictures.filter((picture) => !picture.closest("[hidden]"));
function describe(picture) {
  if (picture.closest(".card")) return picture.alt;
  const caption = picture.closest("figure").querySelector("figcaption");
  const heading = picture.closest("div").previousElementSibling;
  const row = heading && heading.tagName === "H3" ? heading.textContent + " · " : "";
  return row + (caption ? caption.textContent : "");
}
function show(picture) {
  const shown = visible();
  current = picture;
  dialog.querySelector("img").src = picture.src;
  dialog.querySelector("img").alt = picture.alt;
  dialog.querySelector("p").textContent = describe(picture) + "  (" + (shown.indexOf(picture) + 1) + " / " + shown.length + ")";
  if (!dialog.open) dialog.showModal();
}
function go(step) {
  const shown = visible();
  if (!shown.length) return;
  const focused = document.activeElement.closest(".zoom");
  const from = shown.indexOf(dialog.open ? current : focused && focused.querySelector("img"));
  const next = shown[from < 0 ? 0 : (from + step + shown.length) % shown.length];
  if (dialog.open) show(next);
  else next.parentElement.focus();
}
pictures.forEach((picture) => picture.parentElement.addEventListener("click", () => show(picture)));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => current.parentElement.focus());

// The filter hides images and rows by words and by class, and pictures and bars by method.
const filter = document.querySelector(".filter");
const [words, chosenClass, chosenSeries] = ["words", "class", "series"].map((id) => document.getElementById(id));
const items = [...document.querySelectorAll("[data-find]")].map((item) => {
  const [id, ...classes] = item.dataset.find.split("\n");
  return { item, classes, text: [id, ...classes].join(" ").toLowerCase() };
});
function apply() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const [name, series] = [chosenClass, chosenSeries].map((field) => (field ? field.value : ""));
  for (const { item, classes, text } of items) {
    const other = name && classes.length && !classes.includes(name);
    item.hidden = other || !wanted.every((word) => text.includes(word));
  }
  for (const item of document.querySelectorAll("[data-series]")) item.hidden = series !== "" && item.dataset.series !== series;
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector(".card:not([hidden])");
  const ids = (selector) => new Set([...document.querySelectorAll(selector)].map((card) => card.dataset.find)).size;
  const all = ids(".card");
  document.getElementById("count").value = all ? ids(".card:not([hidden])") + " of " + all + " images" : "";
}
function reset() {
  filter.reset();
  apply();
}
if (filter) {
  filter.hidden = false;
  filter.addEventListener("input", apply);
  filter.addEventListener("submit", (event) => event.preventDefault());
  for (const pick of document.querySelectorAll(".pick")) {
    pick.addEventListener("click", () => {
      chosenClass.value = chosenClass.value === pick.textContent ? "" : pick.textContent;
      apply();
    });
  }
  apply();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input, select");
  if (event.key === "/" && filter && !typing && !dialog.open) {
    event.preventDefault();
    words.select();
    words.focus();
  } else if (event.key === "Escape" && filter && !dialog.open) {
    reset();
    words.blur();
  } else if (!typing && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
    event.preventDefault();
    go(event.key === "ArrowRight" ? 1 : -1);
  }
});

// Light or dark: as the system has it, until the button is pressed. Storage may be forbidden for files.
const root = document.documentElement;
try {
  if (localStorage.getItem("wsol-theme")) root.dataset.theme = localStorage.getItem("wsol-theme");
} catch {}
document.getElementById("theme").addEventListener("click", () => {
  const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("wsol-theme", root.dataset.theme);
  } catch {}
});
