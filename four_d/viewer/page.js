"use strict";
(() => {
  const content = JSON.parse(document.getElementById("data").textContent);
  const count = content.times.length;
  const canvases = [...document.querySelectorAll("canvas[data-panel]")];
  const play = document.getElementById("play"), slider = document.getElementById("time");
  const clock = document.getElementById("clock"), all = document.getElementById("all");
  const scene = document.getElementById("scene");
  const gaps = content.times.slice(1).map((t, i) => t - content.times[i]).sort((a, b) => a - b);
  // as fast as the video, but no faster than the scene can follow
  const interval = Math.max(80, 1000 * (gaps.length ? gaps[gaps.length >> 1] : 1));
  let frame = 0, playing = false, timer = 0, sceneInput = null;

  const pictures = content.panels.map((uris) => uris.map((uri) => {
    const image = new Image();
    image.src = uri;
    return image;
  }));

  function draw() {
    canvases.forEach((canvas, panel) => {
      const image = pictures[panel][frame];
      if (canvas.width !== image.naturalWidth || canvas.height !== image.naturalHeight) {
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
      }
      canvas.getContext("2d").drawImage(image, 0, 0);
    });
    slider.value = frame;
    clock.textContent = `frame ${frame + 1}/${count} · ${content.times[frame].toFixed(2)} s`;
    moveScene();
  }

  // The recording's clock counts frames, and one more second that shows all of them. Its player has no programming
  // interface, so we type into its time field, as a reader could.
  function moveScene() {
    if (!sceneInput) return;
    const value = String((all.checked ? count : frame) + 0.5);
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
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, button")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === " ") setPlaying(!playing);
    else if (step) { setPlaying(false); show((frame + step + count) % count); }
    else return;
    event.preventDefault();
  });
  if (count < 2) document.getElementById("controls").hidden = true;
  Promise.all(pictures.flat().map((image) => image.decode())).then(() => {
    draw();
    setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    document.documentElement.dataset.video = "ready";
  });
  if (scene) findSceneInput();
})();
