// The colour scheme that the person chose. This script runs before the page is drawn, so that nothing flashes.
"use strict";

try {
  const theme = localStorage.getItem("gpubnb-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing for the site follows the system.
}
