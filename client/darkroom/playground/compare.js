// Two images one over the other; a slider says how much of the first is seen.

const HTML = `
<style>
  .frame { margin: 0 auto; }
  .both { position: relative; line-height: 0; overflow: hidden; border-radius: 0.6rem; }
  .both img { width: 100%; height: 100%; object-fit: contain; }
  .both img + img { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)); }
  .both i { position: absolute; inset: 0 auto 0 var(--at); width: 2px; margin-left: -1px;
    background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
  input { width: 100%; min-height: 2.25rem; margin: 0.4rem 0 0; accent-color: var(--st-primary-color); }
  input:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 2px; }
</style>
<div class="frame"><div class="both"><img><img><i></i></div>
<input type="range" min="0" max="100" value="50" aria-label="How much of the left image is seen"></div>`;

export default function ({ data, parentElement }) {
  if (!parentElement.querySelector(".both")) {
    const root = document.createElement("div");
    root.innerHTML = HTML;
    parentElement.appendChild(root);
    const both = parentElement.querySelector(".both");
    const input = parentElement.querySelector("input");
    const show = () => both.style.setProperty("--at", `${input.value}%`);
    const follow = (event) => {
      const box = both.getBoundingClientRect();
      input.value = (100 * (event.clientX - box.left)) / box.width;
      show();
    };
    both.style.touchAction = "pan-y";
    both.style.cursor = "ew-resize";
    both.onpointerdown = (event) => { event.preventDefault(); both.setPointerCapture(event.pointerId); follow(event); };
    both.onpointermove = (event) => { if (event.buttons) follow(event); };
    input.oninput = show;
    show();
  }
  const both = parentElement.querySelector(".both");
  both.style.aspectRatio = `${data.width} / ${data.height}`;
  both.parentElement.style.maxWidth = `calc(65vh * ${data.width / data.height})`;
  both.querySelectorAll("img").forEach((image, place) => {
    if (image.getAttribute("src") !== data.images[place]) image.src = data.images[place];
    image.alt = data.names[place];
  });
}
