// Maps as pictures: the look of tokentm.render.overlay, redrawn in the browser whenever a slider moves.
const imageOf = (url) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = () => reject(new Error("The picture cannot be shown."));
  image.src = url;
});

// Pixels of a picture, enlarged by a whole number until its shorter side is about 480.
const pixelsOf = (image) => {
  const times = Math.max(1, Math.ceil(480 / Math.min(image.width, image.height)));
  const canvas = document.createElement("canvas");
  canvas.width = image.width * times;
  canvas.height = image.height * times;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
};

// Bilinear with patch centres where they are, values beyond the outer centres repeated: torch's align_corners=False.
const positions = (size, cells) => Array.from({ length: size }, (_, i) => {
  const at = Math.max(0, ((i + 0.5) * cells) / size - 0.5);
  const low = Math.min(cells - 1, Math.floor(at));
  return [low, Math.min(cells - 1, low + 1), at - low];
});

const upsampled = (grid, width, height) => {
  const found = new Float32Array(width * height);
  const across = positions(width, grid[0].length);
  positions(height, grid.length).forEach(([top, bottom, down], y) => {
    across.forEach(([left, right, over], x) => {
      const upper = grid[top][left] * (1 - over) + grid[top][right] * over;
      const lower = grid[bottom][left] * (1 - over) + grid[bottom][right] * over;
      found[y * width + x] = upper * (1 - down) + lower * down;
    });
  });
  return found;
};

const scaled = (value, map) => {
  if (map.high <= map.low) return map.signed ? 0.5 : 0;
  return Math.min(1, Math.max(0, (value - map.low) / (map.high - map.low)));
};

const tableOf = (look, signed) => (signed ? look.diverging : look.sequential);
const step = (unit) => Math.min(255, Math.floor(unit * 256));

// photo: ImageData; map: {relevance (gy × gx), low, high, signed}; look: {opacity, sequential, diverging}.
const paint = (canvas, photo, map, look) => {
  const { width, height, data } = photo;
  canvas.width = width;
  canvas.height = height;
  const out = new ImageData(width, height), table = tableOf(look, map.signed);
  const values = upsampled(map.relevance, width, height);
  const drained = 1 - look.opacity * (map.signed ? 1 : 0.7), light = 1 - 0.25 * look.opacity;
  for (let i = 0; i < values.length; i++) {
    const unit = scaled(values[i], map), at = 4 * i, colour = 3 * step(unit);
    const cover = look.opacity * Math.sqrt(map.signed ? Math.abs(2 * unit - 1) : unit);
    const grey = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
    for (let channel = 0; channel < 3; channel++) {
      const dimmed = (grey + (data[at + channel] - grey) * drained) * light;
      out.data[at + channel] = dimmed * (1 - cover) + table[colour + channel] * cover;
    }
    out.data[at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(out, 0, 0);
};

// A legend as Python draws it: the map's colours over mid-grey.
const paintRamp = (canvas, look, signed) => {
  const grey = new ImageData(new Uint8ClampedArray(256 * 4).fill(128), 256, 1);
  const ramp = [Array.from({ length: 256 }, (_, i) => i / 255)];
  paint(canvas, grey, { relevance: ramp, low: 0, high: 1, signed }, look);
};

// A small map of bare colours, one pixel per patch.
const paintCells = (canvas, rows, low, high, table) => {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  const out = new ImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, i) => {
    const colour = 3 * step(scaled(value, { low, high }));
    out.data.set([table[colour], table[colour + 1], table[colour + 2], 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(out, 0, 0);
};
