"use strict";
(() => {
  const content = JSON.parse(document.getElementById("data").textContent);
  const count = content.times.length;
  const canvases = [...document.querySelectorAll("canvas[data-panel]")];
  const play = document.getElementById("play"), slider = document.getElementById("time");
  const clock = document.getElementById("clock"), all = document.getElementById("all");
  const scene = document.getElementById("scene"), space = document.getElementById("space");
  const trails = content.trails && makeTrails(content.trails);
  const skeletons = content.skeletons && makeSkeletons(content.skeletons);
  const bones = document.getElementById("bones");
  const mode = () => document.querySelector("input[name=trails]:checked").value;
  const splats = () => content.splats && document.querySelector("input[name=shape]:checked").value === "splats";
  const gaps = content.times.slice(1).map((t, i) => t - content.times[i]).sort((a, b) => a - b);
  // as fast as the video, but no faster than the scene can follow
  const interval = Math.max(80, 1000 * (gaps.length ? gaps[gaps.length >> 1] : 1));
  let frame = 0, playing = false, timer = 0, sceneInput = null;

  const images = content.panels.map((uris) => uris.map((uri) => {
    const image = new Image();
    image.src = uri;
    return image;
  }));

  function draw() {
    canvases.forEach((canvas, panel) => {
      const image = images[panel][frame];
      const followed = panel === 0 && trails && trails.flat;
      // trails are finer than the image's pixels
      const fine = followed ? Math.min(8, Math.max(1, canvas.clientWidth * devicePixelRatio / image.naturalWidth)) : 1;
      resize(canvas, Math.round(image.naturalWidth * fine), Math.round(image.naturalHeight * fine));
      const pen = canvas.getContext("2d");
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      if (followed) trails.draw(pen, trails.flat(canvas.width, canvas.height), frame, mode(), 1 / shown(canvas).scale);
    });
    if (trails) document.getElementById("followed").textContent = trails.words(frame, mode());
    slider.value = frame;
    clock.textContent = `frame ${frame + 1}/${count} · ${content.times[frame].toFixed(2)} s`;
    moveScene();
  }

  function resize(canvas, width, height) {
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  }

  // Where in its box a canvas is shown, whose shape the box need not have.
  function shown(canvas) {
    const scale = Math.min(canvas.clientWidth / canvas.width, canvas.clientHeight / canvas.height);
    const width = canvas.width * scale, height = canvas.height * scale;
    return { scale, width, height, left: (canvas.clientWidth - width) / 2, top: (canvas.clientHeight - height) / 2 };
  }

  // Over the 3D view, whenever it is drawn. `view`: world, camera and projection matrices as three.js has them.
  function drawSpace() {
    const view = scene.contentWindow.view;
    if (!view) return;
    const width = space.clientWidth, height = space.clientHeight;
    resize(space, Math.round(width * devicePixelRatio), Math.round(height * devicePixelRatio));
    const pen = space.getContext("2d");
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height);
    // The 3D view takes the shape of its box a while after the box has changed.
    const projection = Array.from(view.projection);
    projection[0] = projection[5] * height / width;
    const matrix = product(product(projection, view.camera), view.world);
    if (trails && trails.space) {
      trails.draw(pen, trails.space(matrix, width, height), frame, mode(), 1, all.checked && !splats());
    }
    if (skeletons && bones.checked) skeletons.draw(pen, matrix, width, height, frame);
  }

  // Of two 4 × 4 matrices, column after column.
  function product(a, b) {
    const sum = (row, column) => [0, 1, 2, 3].reduce((s, k) => s + a[4 * k + row] * b[4 * column + k], 0);
    return Array.from({ length: 16 }, (_, at) => sum(at % 4, at >> 2));
  }

  function pickAt(event) {
    const { width, height, left, top } = shown(canvases[0]);
    const x = (event.offsetX - left) / width, y = (event.offsetY - top) / height;
    trails.pick(trails.nearest(frame, mode(), x, y, width / height), event.shiftKey);
    draw();
  }

  // The recording's clock counts frames, one more second that shows all of them, and then the frames again in splats.
  // Its player has no programming interface, so we type into its time field, as a reader could.
  function moveScene() {
    if (!sceneInput) return;
    if (space) drawSpace();
    const second = splats() ? count + 1 + frame : all.checked ? count : frame;
    const value = String(second + 0.5);
    const view = scene.contentWindow;
    Object.getOwnPropertyDescriptor(view.HTMLInputElement.prototype, "value").set.call(sceneInput, value);
    sceneInput.dispatchEvent(new view.Event("input", { bubbles: true }));
  }

  function findSceneInput() {
    const found = scene.contentDocument && scene.contentDocument.querySelector("input.mantine-NumberInput-input");
    if (!found) return void setTimeout(findSceneInput, 100);
    sceneInput = found;
    found.closest(".mantine-Paper-root").style.display = "none";
    document.documentElement.dataset.scene = "ready";
    if (space) scene.contentWindow.onview = drawSpace;
    if (trails) {
      scene.contentWindow.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(event.key); });
    }
    draw();
  }

  function setPlaying(value) {
    playing = value && count > 1;
    play.textContent = playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", playing ? "Pause" : "Play");
    clearInterval(timer);
    if (playing) timer = setInterval(() => show((frame + 1) % count), interval);
  }

  function show(index) {
    frame = Math.min(Math.max(index, 0), count - 1);
    draw();
  }

  play.addEventListener("click", () => setPlaying(!playing));
  slider.addEventListener("input", () => { setPlaying(false); show(Number(slider.value)); });
  all.addEventListener("change", moveScene);
  function reshape() {
    all.parentElement.style.visibility = splats() ? "hidden" : "";
    moveScene();
  }
  if (content.splats) {
    document.getElementById("shape").addEventListener("change", reshape);
    reshape();
  }
  // Whether a key has to do with picking points.
  function choose(key) {
    if (!trails || !["Escape", "n", "p"].includes(key)) return false;
    if (key === "Escape") trails.clear();
    else trails.step(mode(), key === "n" ? 1 : -1);
    draw();
    return true;
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || choose(event.key)) return;
    if (event.target.matches("input, button")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === " ") setPlaying(!playing);
    else if (step) { setPlaying(false); show((frame + step + count) % count); }
    else return;
    event.preventDefault();
  });
  if (trails) {
    document.getElementById("trails").addEventListener("change", draw);
    if (trails.flat) canvases[0].addEventListener("click", pickAt);
  }
  if (skeletons) bones.addEventListener("change", draw);
  if (trails || skeletons) addEventListener("resize", draw);
  if (space) new ResizeObserver(drawSpace).observe(space);  // also where a scroll bar comes or goes
  if (count < 2) document.getElementById("controls").hidden = true;
  Promise.all(images.flat().map((image) => image.decode())).then(() => {
    draw();
    setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    document.documentElement.dataset.video = "ready";
  });
  if (scene) findSceneInput();
})();
