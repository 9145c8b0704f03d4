// Paints a mask over an image: white where it is to be repainted, black where it stays.
// Strokes are kept, so that each can be undone; the mask is sent as a PNG after every stroke.

const HTML = `
<style>
  .board { position: relative; line-height: 0; }
  .board img { width: 100%; border-radius: 0.6rem; }
  canvas { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0.55;
    touch-action: none; cursor: crosshair; border-radius: 0.6rem; }
  canvas:focus-visible, button:focus-visible, input:focus-visible {
    outline: 2px solid var(--st-primary-color); outline-offset: 2px; }
  .tools { display: flex; flex-wrap: wrap; gap: 0.4rem; align-items: center; margin-top: 0.5rem; }
  button { font: inherit; min-height: 2.25rem; padding: 0 0.7rem; border-radius: 0.6rem;
    color: var(--st-text-color); background: var(--st-background-color);
    border: 1px solid var(--st-border-color, #8888); cursor: pointer; }
  button[aria-pressed=true] { border-color: var(--st-primary-color); color: var(--st-primary-color); }
  button:disabled { opacity: 0.5; cursor: default; }
  label { display: flex; gap: 0.4rem; align-items: center; flex: 1 1 8rem; min-height: 2.25rem; }
  input { flex: 1; min-width: 4rem; accent-color: var(--st-primary-color); }
</style>
<div class="board"><img alt=""><canvas tabindex="0" role="application" aria-label="Mask: drag to
paint over the part to regenerate; or move with the arrow keys and paint with the space bar"></canvas></div>
<div class="tools" role="group" aria-label="Brush">
  <button data-do="paint" aria-pressed="true">Paint</button>
  <button data-do="erase" aria-pressed="false">Erase</button>
  <button data-do="undo">Undo</button>
  <button data-do="clear">Clear</button>
  <label>Size <input type="range" min="1" max="50" value="12"></label>
</div>`;

class Brush {
  constructor(root) {
    this.root = root;
    root.innerHTML = HTML;
    this.image = root.querySelector("img");
    this.canvas = root.querySelector("canvas");
    this.size = root.querySelector("input");
    this.erases = false;
    this.cursor = { x: 0.5, y: 0.5 };
    for (const button of root.querySelectorAll("button"))
      button.onclick = () => this[button.dataset.do]();
    const { canvas } = this;
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.begin(this.at(event));
    };
    canvas.onpointermove = (event) => {
      if (!this.stroke) return;
      for (const one of event.getCoalescedEvents?.() ?? [event]) this.stroke.points.push(this.at(one));
      this.draw();
    };
    canvas.onpointerup = canvas.onpointercancel = () => this.finish();
    canvas.onkeydown = (event) => this.press(event);
  }

  // Another image, or a mask that was removed elsewhere, starts over. Otherwise the strokes here are
  // newer than the mask that the page knows.
  update({ image, width, height, mask, resets }, send) {
    this.send = send;
    const other = image !== this.image.getAttribute("src");
    if (!other && resets === this.resets) return;
    if (other) {
      this.image.src = image;
      this.image.style.aspectRatio = `${width} / ${height}`; // its place before it is loaded
      [this.canvas.width, this.canvas.height] = [width, height];
    }
    [this.strokes, this.stroke, this.base, this.resets] = [[], null, null, resets];
    if (mask) {
      const base = new Image();
      base.onload = () => { this.base = base; this.draw(); };
      base.src = mask;
    }
    this.draw();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  begin(point) {
    const share = this.size.value / 100;
    this.stroke = { points: [point], share, erases: this.erases };
    this.strokes.push(this.stroke);
    this.draw();
  }

  finish() {
    if (!this.stroke) return;
    this.stroke = null;
    this.tell();
  }

  press(event) {
    const step = 0.04, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const move = moves[event.key];
    if (move) {
      this.cursor.x = Math.min(1, Math.max(0, this.cursor.x + move[0]));
      this.cursor.y = Math.min(1, Math.max(0, this.cursor.y + move[1]));
      this.draw(true);
    } else if (event.key === " ") {
      this.begin({ ...this.cursor });
      this.finish();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.undo();
    } else return;
    event.preventDefault();
  }

  paint() { this.choose(false); }
  erase() { this.choose(true); }
  choose(erases) {
    this.erases = erases;
    for (const button of this.root.querySelectorAll("[aria-pressed]"))
      button.setAttribute("aria-pressed", (button.dataset.do === "erase") === erases);
  }
  undo() { if (this.strokes.pop()) { this.draw(); this.tell(); } }
  clear() { this.strokes = []; this.base = null; this.draw(); this.tell(); }

  trace(context, colour) {
    const { width, height } = context.canvas;
    context.lineCap = context.lineJoin = "round";
    for (const { points, share, erases } of this.strokes) {
      context.globalCompositeOperation = erases ? "destination-out" : "source-over";
      context.strokeStyle = colour;
      context.lineWidth = share * Math.min(width, height);
      context.beginPath();
      context.moveTo(points[0].x * width, points[0].y * height);
      for (const { x, y } of points) context.lineTo(x * width, y * height + 0.01); // a dot is a line, too
      context.stroke();
    }
    context.globalCompositeOperation = "source-over";
  }

  layer(colour) {
    const layer = document.createElement("canvas");
    [layer.width, layer.height] = [this.canvas.width, this.canvas.height];
    const context = layer.getContext("2d");
    if (this.base) { // its white becomes the colour, its black nothing
      context.drawImage(this.base, 0, 0, layer.width, layer.height);
      const pixels = context.getImageData(0, 0, layer.width, layer.height);
      for (let place = 0; place < pixels.data.length; place += 4)
        pixels.data[place + 3] = pixels.data[place];
      context.putImageData(pixels, 0, 0);
      context.globalCompositeOperation = "source-in";
      context.fillStyle = colour;
      context.fillRect(0, 0, layer.width, layer.height);
    }
    this.trace(context, colour);
    return layer;
  }

  draw(showsCursor = false) {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.drawImage(this.layer("#ff2d55"), 0, 0);
    if (!showsCursor) return;
    const { width, height } = this.canvas;
    context.lineWidth = Math.max(1, width / 150);
    context.strokeStyle = "#fff";
    context.beginPath();
    const radius = (this.size.value / 200) * Math.min(width, height);
    context.arc(this.cursor.x * width, this.cursor.y * height, radius, 0, 2 * Math.PI);
    context.stroke();
  }

  tell() {
    const mask = document.createElement("canvas");
    [mask.width, mask.height] = [this.canvas.width, this.canvas.height];
    const context = mask.getContext("2d");
    context.fillRect(0, 0, mask.width, mask.height);
    context.drawImage(this.layer("#fff"), 0, 0);
    const { data } = context.getImageData(0, 0, mask.width, mask.height);
    const isPainted = data.some((value, place) => place % 4 === 0 && value);
    this.send(isPainted ? mask.toDataURL("image/png") : null);
  }
}

const brushes = new WeakMap();

export default function ({ data, parentElement, setStateValue }) {
  let root = parentElement.querySelector(".brush");
  if (!root) {
    root = document.createElement("div");
    root.className = "brush";
    parentElement.appendChild(root);
  }
  if (!brushes.has(root)) brushes.set(root, new Brush(root));
  brushes.get(root).update(data, (mask) => setStateValue("mask", mask));
}
