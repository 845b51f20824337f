// Keypoints and bones over the 3D view. `data` is what skeletons.py makes.
function makeSkeletons(data) {
  const decode = (Kind, text) => new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const points = decode(Float32Array, data.points), seen = decode(Uint8Array, data.seen);
  const rgb = decode(Uint8Array, data.colours), count = rgb.length / 3;
  const inks = Array.from({ length: count }, (_, i) => `rgb(${rgb[3 * i]} ${rgb[3 * i + 1]} ${rgb[3 * i + 2]})`);
  const place = new Float64Array(2 * count);

  // Bones on a dark casing in the colour of their second point; a full dot is a point that is seen, a ring a hidden one.
  function draw(pen, matrix, width, height, frame) {
    const there = inks.map((_, i) => projectTo(place, 2 * i, matrix, width, height, points, 3 * (frame * count + i)));
    pen.save();
    pen.lineCap = "round";
    const bones = data.edges.filter(([start, end]) => there[start] && there[end]);
    for (const [thick, ink] of [[5, () => "#000a"], [2.5, (end) => inks[end]]]) {
      pen.lineWidth = thick;
      for (const [start, end] of bones) {
        pen.strokeStyle = ink(end);
        pen.beginPath();
        pen.moveTo(place[2 * start], place[2 * start + 1]);
        pen.lineTo(place[2 * end], place[2 * end + 1]);
        pen.stroke();
      }
    }
    inks.forEach((ink, i) => {
      if (!there[i]) return;
      const full = seen[frame * count + i];
      pen.beginPath();
      pen.arc(place[2 * i], place[2 * i + 1], 4, 0, 7);
      pen.fillStyle = full ? ink : "#000a";
      pen.strokeStyle = full ? "#fff" : ink;
      pen.lineWidth = full ? 1 : 2;
      pen.fill();
      pen.stroke();
    });
    pen.restore();
  }

  return { draw };
}
