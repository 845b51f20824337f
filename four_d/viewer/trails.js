// Where the 3D view shows the point `points[from]` …, into `place[to]` and the next; false if it is behind the viewer.
// `m`: 16 numbers, column after column, from scene coordinates to [-w, w].
function projectTo(place, to, m, width, height, points, from) {
  const x = points[from], y = points[from + 1], z = points[from + 2];
  const w = m[3] * x + m[7] * y + m[11] * z + m[15];
  if (!(w > 1e-6)) return false;
  place[to] = (0.5 + 0.5 * (m[0] * x + m[4] * y + m[8] * z + m[12]) / w) * width;
  place[to + 1] = (0.5 - 0.5 * (m[1] * x + m[5] * y + m[9] * z + m[13]) / w) * height;
  return true;
}

// Trails of tracked points over an image, flat or in space. `data` is what trails.py makes.
function makeTrails(data) {
  const LENGTH = 8;
  const decode = (Kind, text) => text && new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const count = data.moving.length, frames = data.cameras.length;
  const pixels = decode(Float32Array, data.pixels), points = decode(Float32Array, data.points);
  const seen = decode(Uint8Array, data.seen), rgb = decode(Uint8Array, data.colours);
  const starts = decode(Float32Array, data.starts);
  const inks = data.moving.map((_, i) => `rgb(${rgb[3 * i]} ${rgb[3 * i + 1]} ${rgb[3 * i + 2]})`);
  const ids = data.moving.map((_, i) => i), moving = ids.filter((i) => data.moving[i]);
  const resting = ids.filter((i) => !data.moving[i]), all = [...moving, ...resting];
  const selected = new Set(data.selected);
  const place = new Float64Array(2 * frames);

  // Drawn in this order, so that what moves is on top.
  const groups = (mode) => ({ all: [resting, moving], moving: [moving], none: [] })[mode];

  // Frames of the same camera up to `frame`, the newest first.
  function history(frame) {
    return data.cameras.flatMap((camera, f) => (f <= frame && camera === data.cameras[frame] ? [f] : [])).reverse();
  }

  function flat(width, height) {
    return (i, f) => {
      const at = 2 * (i * frames + f), x = pixels[at], y = pixels[at + 1];
      if (!(Math.abs(x - 0.5) < 2 && Math.abs(y - 0.5) < 2)) return false;
      place[2 * f] = x * width, place[2 * f + 1] = y * height;
      return true;
    };
  }

  function space(m, width, height) {
    return (i, f) => projectTo(place, 2 * f, m, width, height, points, 3 * (i * frames + f));
  }

  // Lines between frames in which a point was seen, on a dark casing, older parts fainter, and a dot where it is now.
  // Points of one colour are drawn at a stroke: thousands of strokes a frame would be too many.
  function drawThin(pen, project, chosen, past, size, strength) {
    const casing = new Path2D(), lines = new Map();
    for (const i of chosen) {
      if (!lines.has(inks[i])) lines.set(inks[i], { dots: new Path2D(), ages: past.slice(1).map(() => new Path2D()) });
      const { dots, ages } = lines.get(inks[i]);
      walk(project, i, past, (from, to, age) => { segment(casing, from, to); segment(ages[age], from, to); });
      if (seen[i * frames + past[0]] && project(i, past[0])) dot(dots, past[0], (data.moving[i] ? 2 : 1.2) * size);
    }
    pen.lineWidth = 2.8 * size;
    pen.strokeStyle = "#000";
    pen.globalAlpha = 0.3 * strength ** 2;
    pen.stroke(casing);
    pen.lineWidth = 1.5 * size;
    for (const [ink, { dots, ages }] of lines) {
      pen.strokeStyle = pen.fillStyle = ink;
      ages.forEach((line, age) => {
        pen.globalAlpha = strength * (1 - 0.85 * age / past.length);
        pen.stroke(line);
      });
      pen.globalAlpha = strength;
      pen.fill(dots);
    }
  }

  // Calls `visit` for every two neighbouring frames of `past` in both of which the point was seen, if it moved at all.
  function walk(project, i, past, visit) {
    let before = -1;
    past.forEach((f, k) => {
      const there = seen[i * frames + f] && project(i, f);
      if (there && before >= 0 && apart(before, f)) visit(before, f, k - 1);
      before = there ? f : -1;
    });
  }

  function apart(a, b) {
    return Math.hypot(place[2 * a] - place[2 * b], place[2 * a + 1] - place[2 * b + 1]) > 0.25;
  }

  function segment(line, from, to) {
    line.moveTo(place[2 * from], place[2 * from + 1]);
    line.lineTo(place[2 * to], place[2 * to + 1]);
  }

  function dot(line, f, radius) {
    line.moveTo(place[2 * f] + radius, place[2 * f + 1]);
    line.arc(place[2 * f], place[2 * f + 1], radius, 0, 7);
  }

  // Picked out: the whole way up to now on a light casing; a ring where the point is now, broken while it is hidden.
  function drawSelected(pen, project, i, past, size) {
    const line = new Path2D(), ring = new Path2D();
    walk(project, i, past, (from, to) => segment(line, from, to));
    pen.globalAlpha = 1;
    for (const [ink, width] of [["#fff", 4.5], [inks[i], 2.5]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = width * size;
      pen.stroke(line);
    }
    if (!project(i, past[0])) return;
    dot(ring, past[0], 5.5 * size);
    pen.setLineDash(seen[i * frames + past[0]] ? [] : [2.5 * size, 2.5 * size]);
    for (const [ink, width] of [["#000a", 5], ["#fff", 3], [inks[i], 1.5]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = width * size;
      pen.stroke(ring);
    }
    pen.setLineDash([]);
  }

  // `size`: the pen's units per pixel of the screen. `whole`: trails through all frames.
  function draw(pen, project, frame, mode, size, whole) {
    const full = history(whole ? frames - 1 : frame, Infinity);
    const past = whole ? full : full.slice(0, LENGTH + 1);
    pen.save();
    pen.lineCap = pen.lineJoin = "round";
    for (const group of groups(mode)) {
      drawThin(pen, project, group.filter((i) => !selected.has(i)), past, size, selected.size ? 0.35 : 1);
    }
    for (const i of selected) drawSelected(pen, project, i, full, size);
    pen.restore();
  }

  const choice = (mode) => (moving.length && mode === "moving" ? moving : all);

  // The point nearest to a place as fractions of the image, visible ones before hidden ones; -1 if none is in the image.
  function nearest(frame, mode, x, y, aspect) {
    let best = -1, least = Infinity;
    for (const i of choice(mode)) {
      const at = 2 * (i * frames + frame), u = pixels[at], v = pixels[at + 1];
      if (!(u >= 0 && u <= 1 && v >= 0 && v <= 1)) continue;
      const gap = Math.hypot((u - x) * aspect, v - y) + (seen[i * frames + frame] ? 0 : 10);
      if (gap < least) [best, least] = [i, gap];
    }
    return best;
  }

  function pick(i, more) {
    const had = selected.has(i);
    if (!more) selected.clear();
    if (had) selected.delete(i);
    else if (i >= 0) selected.add(i);
  }

  function step(mode, by) {
    const order = choice(mode);
    const at = order.indexOf([...selected].pop());
    selected.clear();
    selected.add(order[at < 0 ? (by > 0 ? 0 : order.length - 1) : (at + by + order.length) % order.length]);
  }

  // The selected points, or how many move and how many of those this frame shows.
  function words(frame, mode) {
    if (selected.size > 1) return `${selected.size} points picked out.`;
    for (const i of selected) {
      const [frame, x, y] = starts.subarray(3 * i, 3 * i + 3);
      const often = seen.subarray(i * frames, (i + 1) * frames).reduce((sum, value) => sum + value, 0);
      const how = data.moving[i] ? "it moves" : "it rests";
      return `The point at ${x.toFixed(0)}, ${y.toFixed(0)} of frame ${frame + 1}: ${how}, seen in ${often} of ${frames} frames.`;
    }
    if (!moving.length) return "Nothing moves in this video.";
    const drawn = mode === "none" ? "no trails are drawn" : `${moving.filter((i) => seen[i * frames + frame]).length} of them are seen in this frame`;
    return `${moving.length} of ${count} followed points move; ${drawn}.`;
  }

  return {
    flat: pixels && flat, space: points && space, draw, nearest, pick, step, words, selected,
    clear: () => selected.clear(), moves: moving.length > 0,
  };
}
