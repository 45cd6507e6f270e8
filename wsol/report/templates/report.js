// A click or Enter enlarges a picture; arrow keys go to its neighbours, Escape or a click closes.
const pictures = [...document.querySelectorAll(".zoom img")];
const dialog = document.querySelector("dialog");
let current = 0;
function show(index) {
  current = (index + pictures.length) % pictures.length;
  const caption = pictures[current].closest("figure").querySelector("figcaption");
  const heading = pictures[current].closest("div").previousElementSibling;
  const row = heading && heading.tagName === "H3" ? heading.textContent + " · " : "";
  dialog.querySelector("img").src = pictures[current].src;
  dialog.querySelector("img").alt = pictures[current].alt;
  dialog.querySelector("p").textContent = row + (caption ? caption.textContent : "") + "  (" + (current + 1) + " / " + pictures.length + ")";
  if (!dialog.open) dialog.showModal();
}
pictures.forEach((picture, index) => picture.parentElement.addEventListener("click", () => show(index)));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(current + 1);
  if (event.key === "ArrowLeft") show(current - 1);
});
dialog.addEventListener("close", () => pictures[current].parentElement.focus());
